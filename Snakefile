# From the ADE20K archive and the pretrained checkpoints of a sheet to the table of results.
#
#   snakemake --profile slurm results/table.md      every row of config/published.yaml
#   snakemake --profile local results/table.md      the same on this machine
#   snakemake --profile local --config sheet=config/sweep.yaml
from snakemake.utils import min_version

min_version("9.27")


configfile: "config/workflow.yaml"


report: "workflow/report/workflow.rst"


include: "workflow/rules/common.smk"
include: "workflow/rules/messages.smk"


pathvars:
    results=str(SHEET.results),
    data=SHEET.data.root,


wildcard_constraints:
    experiment=r"[A-Za-z0-9][A-Za-z0-9._-]*",
    seed=r"\d+",


localrules:
    all,
    make_demo,
    prepare_data,
    inspect_checkpoint,
    summarise,
    track,
    write_table,
    draw_figures,
    write_report,


rule all:
    default_target: True
    input:
        "<results>/table.md",
        "<results>/table.csv",
        "<results>/figures",
        "<results>/claim.md",
        "<results>/pages/table.html",
        "<results>/pages/claim.html",


include: "workflow/rules/prepare.smk"
include: "workflow/rules/fine_tune.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/track.smk"
include: "workflow/rules/aggregate.smk"
include: "workflow/rules/targets.smk"


onsuccess:
    if (table := SHEET.results / "table.md").exists():
        print(f"The table: {table}. Compare the runs: make ui, or cae-seg ui")

rule write_table:
    input:
        sheet=str(SHEET.path),
        metrics=expand("<results>/{experiment}/metrics.json", experiment=ROWS),
        tracked=of_runs("<results>/{experiment}/seed_{seed}/tracked.json"),
    output:
        table="<results>/table.md",
        csv=report("<results>/table.csv", caption="../report/table.rst", category="Results"),
    log:
        "<results>/logs/write_table/table.log",
    conda:
        "../../environment.yml"
    params:
        code=code_fingerprint(),
    message:
        "Write {output.table}"
    shell:
        "cae-seg table --sheet {input.sheet} --out {output.table} --csv {output.csv}"
        " 2>&1 | tee {log}"


rule draw_figures:
    input:
        sheet=str(SHEET.path),
        metrics=expand("<results>/{experiment}/metrics.json", experiment=ROWS),
    output:
        figures=report(
            directory("<results>/figures"),
            patterns=["{figure}.svg"],
            caption="../report/figures.rst",
            category="Figures",
            labels={"figure": "{figure}"},
        ),
        numbers="<results>/claim.json",
        claim=report("<results>/claim.md", caption="../report/claim.rst", category="Results"),
    log:
        "<results>/logs/draw_figures/figures.log",
    conda:
        "../../environment.yml"
    message:
        "Draw {output.figures}"
    shell:
        "cae-seg figures --sheet {input.sheet} --out {output.figures} --claim {output.claim}"
        " 2>&1 | tee {log}"


rule write_report:
    input:
        rules.all.input,
    output:
        report="report.html",
    log:
        "<results>/logs/write_report/report.log",
    conda:
        "../../environment.yml"
    params:
        sheet=sheet_file,
    message:
        "Write {output.report}"
    shell:
        "snakemake --nolock --cores 1 --config sheet={params.sheet} --report {output.report}"
        " 2>&1 | tee {log}"

rule write_table:
    input:
        sheet=sheet_input,
        metrics=expand("<results>/{experiment}/metrics.json", experiment=ROWS),
        augmented=augmented_runs(),
        tracked=all_runs("<results>/{experiment}/seed_{seed}/tracked.json"),
    output:
        table="<results>/table.md",
        csv=report("<results>/table.csv", **AMONG_RESULTS, labels={"result": "table.csv"}),
        page=report("<results>/pages/table.html", **AMONG_RESULTS, labels={"result": "Table"}),
        overview="<results>/pages/overview.rst",
        runs=report(
            directory("<results>/pages/runs"),
            patterns=["{experiment}_seed{seed}.html"],
            caption="../report/run.rst",
            category="Runs",
            labels={"experiment": "{experiment}", "seed": "{seed}"},
        ),
    log:
        "<results>/logs/write_table/table.log",
    conda:
        "../../environment.yml"
    params:
        code=code_fingerprint(),
        pages=subpath(output.page, parent=True),
    message:
        "Write {output.table}"
    shell:
        "cae-seg table --sheet={input.sheet:q} --out={output.table:q} --csv={output.csv:q}"
        " --pages={params.pages:q} 2>&1 | tee {log:q}"


rule draw_figures:
    input:
        sheet=sheet_input,
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
        claim="<results>/claim.md",
        page=report(
            "<results>/pages/claim.html",
            caption="../report/claim.rst",
            category="Results",
            labels={"result": "Claim"},
        ),
    log:
        "<results>/logs/draw_figures/figures.log",
    conda:
        "../../environment.yml"
    params:
        pages=subpath(output.page, parent=True),
    message:
        "Draw {output.figures}"
    shell:
        "cae-seg figures --sheet={input.sheet:q} --out={output.figures:q} --claim={output.claim:q}"
        " --pages={params.pages:q} 2>&1 | tee {log:q}"


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
        sheet=sheet_setting,
    message:
        "Write {output.report}"
    shell:
        "snakemake --nolock --cores 1 --config {params.sheet:q} --report {output.report:q}"
        " 2>&1 | tee {log:q}"

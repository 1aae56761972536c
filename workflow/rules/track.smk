rule track:
    input:
        run="<results>/{experiment}/seed_{seed}/run.json",
        metrics="<results>/{experiment}/seed_{seed}/metrics.json",
    output:
        delivered="<results>/{experiment}/seed_{seed}/tracked.json",
    log:
        "<results>/logs/track/{experiment}_seed{seed}.log",
    conda:
        "../../environment.yml"
    params:
        folder=subpath(input.run, parent=True),
        sheet=sheet_file,
        again=tracking_retry_token,
    message:
        "Track {wildcards.experiment}, seed {wildcards.seed}, in MLflow"
    shell:
        "cae-seg track {params.folder:q} --sheet={params.sheet:q} --out={output.delivered:q}"
        " 2>&1 | tee {log:q}"

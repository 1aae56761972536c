# The run's resumable state lies in work/, which is no output: Snakemake deletes outputs when a job
# starts or fails. `run.json` is written last, when the run is whole.
rule fine_tune:
    input:
        data="<data>/manifest.json",
        checkpoint="<results>/{experiment}/checkpoint.json",
    output:
        run="<results>/{experiment}/seed_{seed}/run.json",
        config="<results>/{experiment}/seed_{seed}/config.py",
    log:
        "<results>/logs/fine_tune/{experiment}_seed{seed}.log",
    benchmark:
        "<results>/benchmarks/fine_tune/{experiment}_seed{seed}.tsv"
    conda:
        "../../environment.yml"
    threads: cpus
    resources:
        gpu=of_row("gpus"),
        nodes=of_row("nodes"),
        mem_mb=memory,
        runtime="2d",
    params:
        config=of_row("config"),
        rate=of_row("learning_rate"),
        precision=of_row("precision"),
        recipe=recipe_options,
        machine=machine_options,
        work=subpath(output.run, parent=True),
        sheet=sheet_file,
    message:
        "Fine-tune {wildcards.experiment}, seed {wildcards.seed}: learning rate {params.rate},"
        " {resources.gpu} GPUs on {resources.nodes} node(s)"
    shell:
        "cae-seg train {params.config} --name {wildcards.experiment} --seed {wildcards.seed}"
        " --learning-rate {params.rate} --precision {params.precision} {params.recipe}"
        " --pretrained {input.checkpoint} --data {input.data} {params.machine}"
        " --work-dir {params.work}/work --out {output.run} --sheet {params.sheet}"
        " 2>&1 | tee {log}"


obey_row("fine_tune")

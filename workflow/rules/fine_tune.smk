# The run's resumable state is in work/, which is no output: Snakemake deletes outputs when a job
# starts or fails. `run.json` is written last, when the run is whole. It deletes logs as well, so
# that the log of all attempts, console.log, is only linked to.
# SLURM's signals go to the whole process group: `exec` leaves no shell that would die of one before
# the state is saved, and tee, which must hear the last words, does not listen to them.
rule fine_tune:
    input:
        data=manifest,
        checkpoint=inspected,
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
        **shared_resources(),
        gpu=gpus,
        gpu_model=gpu_model,
        gres=gres,
        nodes=row_value("nodes"),
        mem_mb=row_override("mem_mb", memory),
        runtime=row_override("runtime", "2d"),
    params:
        config=row_value("config"),
        rate=row_value("learning_rate"),
        recipe=recipe_options,
        machine=machine_options,
        gpus=given_gpus,
        work=subpath(output.run, parent=True),
        sheet=sheet_file,
    message:
        "Fine-tune {wildcards.experiment}, seed {wildcards.seed}: learning rate {params.rate},"
        " {params.gpus} GPUs on {resources.nodes} node(s)"
    shell:
        "ln -sfr {params.work:q}/console.log {log:q}; exec cae-seg train"
        " --name={wildcards.experiment:q} --seed={wildcards.seed:q} --learning-rate={params.rate:q}"
        " {params.recipe:q} {params.machine:q} --data={input.data:q} --sheet={params.sheet:q}"
        " --work-dir={params.work:q}/work --out={output.run:q}"
        " --attempt={resources.attempt:q} --error-file={resources.no_retry_file:q} -- {params.config:q}"
        " > >(trap '' INT TERM USR1; exec tee -a {log:q}) 2>&1"

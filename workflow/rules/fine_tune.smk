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
        gpus=given_gpus,
        work=subpath(output.run, parent=True),
        arguments=train_arguments,
    message:
        "Fine-tune {wildcards.experiment}, seed {wildcards.seed}: learning rate {params.rate},"
        " {params.gpus} GPUs on {resources.nodes} node(s)"
    shell:
        "ln -sfr {params.work:q}/console.log {log:q}; exec cae-seg train {params.arguments:q}"
        " > >(trap '' INT TERM USR1; exec tee -a {log:q}) 2>&1"


# Rows over one frozen backbone train in one job, which is called by the first of them. How each has
# ended is in its report, so that one that fails (a learning rate that diverges) keeps no other one
# from its evaluation.
use rule fine_tune as fine_tune_together with:
    output:
        run="<results>/{experiment}/seed_{seed}/together.json",
    log:
        "<results>/logs/fine_tune_together/{experiment}_seed{seed}.log",
    benchmark:
        "<results>/benchmarks/fine_tune_together/{experiment}_seed{seed}.tsv"
    params:
        config=row_value("config"),
        recipe=recipes_together,
        gpus=given_gpus,
        work=subpath(output.run, parent=True),
        arguments=arguments_together,
        others=lambda wildcards: len(TOGETHER[wildcards.experiment]) - 1,
    message:
        "Fine-tune {wildcards.experiment} and {params.others} more over its frozen backbone,"
        " seed {wildcards.seed}: {params.gpus} GPUs on {resources.nodes} node(s)"


if TOGETHER:

    ruleorder: collect_run > fine_tune

    rule collect_run:
        input:
            report=report_together,
        output:
            run="<results>/{experiment}/seed_{seed}/run.json",
            config="<results>/{experiment}/seed_{seed}/config.py",
        log:
            "<results>/logs/collect_run/{experiment}_seed{seed}.log",
        wildcard_constraints:
            experiment="|".join(re.escape(name) for name in TOGETHER),
        retries: 0
        localrule: True
        conda:
            "../../environment.yml"
        params:
            work=subpath(output.run, parent=True),
        message:
            "Take {wildcards.experiment}, seed {wildcards.seed}, from the runs that trained together"
        shell:
            "cae-seg collect-run {params.work:q}/work --report={input.report:q}"
            " --out={output.run:q} 2>&1 | tee {log:q}"

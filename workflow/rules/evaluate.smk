rule evaluate:
    input:
        data=manifest,
        run="<results>/{experiment}/seed_{seed}/run.json",
        config="<results>/{experiment}/seed_{seed}/config.py",
    output:
        metrics="<results>/{experiment}/seed_{seed}/metrics.json",
    log:
        "<results>/logs/evaluate/{experiment}_seed{seed}.log",
    benchmark:
        "<results>/benchmarks/evaluate/{experiment}_seed{seed}.tsv"
    conda:
        "../../environment.yml"
    threads: lambda wildcards: min(8, cpus(wildcards))
    resources:
        **shared_resources(),
        gpu=lambda wildcards: min(1, row(wildcards).gpus),
        gpu_model=row_override("gpu_model"),
        nodes=1,
        mem_mb=row_override("mem_mb", 24000),
        runtime=row_override("runtime", "4h"),
    params:
        weights=work_weights,
        machine=device_options,
        views=[],
    message:
        "Evaluate {wildcards.experiment}, seed {wildcards.seed}"
    shell:
        "cae-seg evaluate {input.config:q} {params.weights:q} --data={input.data:q}"
        " --name={wildcards.experiment:q} --seed={wildcards.seed:q} {params.machine:q} {params.views:q}"
        " --attempt={resources.attempt:q} --error-file={resources.no_retry_file:q}"
        " --out={output.metrics:q} 2>&1 | tee {log:q}"


use rule evaluate as evaluate_augmented with:
    output:
        metrics="<results>/{experiment}/seed_{seed}/metrics_aug_test.json",
    log:
        "<results>/logs/evaluate_augmented/{experiment}_seed{seed}.log",
    benchmark:
        "<results>/benchmarks/evaluate_augmented/{experiment}_seed{seed}.tsv"
    params:
        weights=work_weights,
        machine=device_options,
        views=["--aug-test"],
    message:
        "Evaluate {wildcards.experiment}, seed {wildcards.seed}, with flips and several scales"


rule aggregate_seeds:
    input:
        metrics=expand_seeds("<results>/{experiment}/seed_{seed}/metrics.json"),
    output:
        metrics="<results>/{experiment}/metrics.json",
    log:
        "<results>/logs/aggregate_seeds/{experiment}.log",
    conda:
        "../../environment.yml"
    message:
        "Join the seeds of {wildcards.experiment}"
    shell:
        "cae-seg aggregate-seeds --out={output.metrics:q} {input.metrics:q} 2>&1 | tee {log:q}"

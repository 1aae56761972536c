rule make_demo:
    output:
        archive="data/demo/ADEChallengeData2016.zip",
        short="data/demo/checkpoints/cae_tiny_300e.pth",
        long="data/demo/checkpoints/cae_tiny_1600e.pth",
        swin="data/demo/checkpoints/swin_demo.pth",
    log:
        "data/demo/make_demo.log",
    conda:
        "../../environment.yml"
    params:
        folder=subpath(output.short, parent=True),
        seed=0,
    message:
        "Draw the demo's images and checkpoints"
    shell:
        "cae-seg prepare demo --archive={output.archive:q} --checkpoints={params.folder:q}"
        " --seed={params.seed:q} 2>&1 | tee {log:q}"


rule prepare_data:
    input:
        archive=archive,
    output:
        manifest="{root}/manifest.json",
    log:
        "<results>/logs/prepare_data/{root}.log",
    benchmark:
        "<results>/benchmarks/prepare_data/{root}.tsv"
    conda:
        "../../environment.yml"
    params:
        source=data_source,
        root=subpath(output.manifest, parent=True),
        options=data_options,
        expected=expected_images,
    message:
        "Extract and verify {params.source}"
    shell:
        "cae-seg prepare data --source={params.source:q} --root={params.root:q}"
        " --manifest={output.manifest:q} {params.options:q} --expected {params.expected:q}"
        " 2>&1 | tee {log:q}"


rule inspect_checkpoint:
    input:
        checkpoint=checkpoint_file,
    output:
        report="<results>/checkpoints/{checkpoint}.json",
    log:
        "<results>/logs/inspect_checkpoint/{checkpoint}.log",
    conda:
        "../../environment.yml"
    params:
        source=lambda wildcards: CHECKPOINTS[wildcards.checkpoint].checkpoint,
        config=lambda wildcards: CHECKPOINTS[wildcards.checkpoint].config,
        sha256=lambda wildcards: cli_flag(
            "sha256", CHECKPOINTS[wildcards.checkpoint].checkpoint_sha256
        ),
        model=model_options,
    message:
        "Inspect the checkpoint {params.source}"
    shell:
        "cae-seg prepare checkpoint --config={params.config:q} {params.sha256:q}"
        " {params.model:q} --out={output.report:q} -- {params.source:q} 2>&1 | tee {log:q}"

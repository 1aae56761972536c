"""What a cluster is asked for: taken from the row, else the profile, as `sbatch` receives it."""

import shlex

import pytest

SUBMIT = """#!/usr/bin/env bash
printf '%q ' "$@" >>sbatch.txt
printf '\\n' >>sbatch.txt
echo "this cluster takes no jobs" >&2
exit 1
"""


@pytest.fixture
def cluster(checkout):
    """A checkout with a cluster that notes what it is asked for and refuses it."""
    for command in ("sbatch", "sacct", "squeue", "sinfo", "scontrol", "scancel"):
        script = checkout.path / "bin" / command
        script.write_text(SUBMIT if command == "sbatch" else "#!/bin/sh\nexit 0\n")
        script.chmod(0o755)
    return checkout


def asked(cluster, experiment, *arguments):
    """Return the options that `sbatch` got for the training of an experiment."""
    data = cluster.path / "data/ade20k/manifest.json"
    data.parent.mkdir(parents=True)
    data.write_text("{}")
    target = f"results/{experiment}/seed_0/run.json"
    quick = ("--retries", "0", "--cae-slurm-init-seconds-before-status-checks", "1")
    done = cluster.snakemake(target, "--profile", "slurm", *quick, *arguments)
    assert done.returncode != 0
    lines = (cluster.path / "sbatch.txt").read_text().splitlines()
    assert len(lines) == 1
    return " ".join(part for part in shlex.split(lines[0]) if "snakemake" not in part)


def test_a_training_asks_for_one_task_with_the_gpus_of_its_row(cluster):
    output = asked(cluster, "vit_b_300")
    assert "--gpus=8" in output
    assert "--nodes=1" in output
    assert "--cpus-per-task=64" in output
    assert "-t 2880" in output
    assert "--mem 136000" in output
    assert "ntasks" not in output


def test_resources_of_a_row_replace_those_of_the_profile(cluster):
    cluster.edit("workflow/profiles/slurm/profile.yaml", "# slurm_partition", "slurm_partition")
    row = "learning_rate: 3e-4, published"
    own = "resources: {runtime: 600, slurm_partition: big, gpu_model: h100, qos: long}"
    cluster.edit("config/published.yaml", row, f"gpus: 4, {own}, {row}")
    output = asked(cluster, "vit_b_300")
    assert "-t 600" in output
    assert "-p big" in output
    assert "--gpus=h100:4" in output
    assert "--qos=long" in output


def test_rows_without_resources_use_the_default_resources_of_the_profile(cluster):
    cluster.edit("workflow/profiles/slurm/profile.yaml", "# slurm_partition", "slurm_partition")
    row = "learning_rate: 3e-4, published"
    cluster.edit("config/published.yaml", row, f"resources: {{slurm_partition: big}}, {row}")
    output = asked(cluster, "vit_b_800")
    assert "-p gpu" in output
    assert "-t 2880" in output


def test_set_resources_replaces_resources_of_rule_and_row(cluster):
    row = "learning_rate: 3e-4, published"
    cluster.edit("config/published.yaml", row, f"resources: {{constraint: pcie}}, {row}")
    options = ("--set-resources", "fine_tune:constraint=nvlink", "fine_tune:runtime=90")
    output = asked(cluster, "vit_b_300", *options)
    assert "-C nvlink" in output
    assert "-t 90" in output


def test_gpus_of_several_nodes_are_of_the_type_in_the_profile(cluster):
    cluster.edit(
        "config/published.yaml",
        "learning_rate: 3e-4, published",
        "nodes: 2, learning_rate: 3e-4, published",
    )
    cluster.edit("workflow/profiles/slurm/profile.yaml", "# gpu_model", "gpu_model")
    output = asked(cluster, "vit_b_300")
    assert "--gres=gpu:a100:4" in output
    assert "--nodes=2" in output
    assert "--gpus" not in output

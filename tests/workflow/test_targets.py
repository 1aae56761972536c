"""The public targets, planned from the repository root with nothing in the home folder."""

import re
import shutil
import subprocess
import sys

import pytest
from checkouts import ROOT, Plan

BASE = "upernet_cae_base_12_512_slide_160k_ade20k_pt_{}"
PER_ROW = ("inspect_checkpoint", "fine_tune", "evaluate", "aggregate_seeds")
ALL = {"prepare_data": 1} | dict.fromkeys(PER_ROW, 5)
MEASURE = """
import cProfile, pathlib, pstats, re
from snakemake.cli import main

profile = cProfile.Profile()
try:
    profile.runcall(main)
finally:
    # Not ru_maxrss, which begins with the memory of the process that started this one.
    memory = re.search(r"VmHWM:\\s+(\\d+) kB", pathlib.Path("/proc/self/status").read_text())[1]
    calls = pstats.Stats(profile).total_calls
    pathlib.Path("measured.txt").write_text(f"{calls} {memory}")
"""


@pytest.mark.parametrize("profile", ["local", "slurm"])
def test_the_table_needs_every_row_of_the_published_sheet(checkout, profile):
    plan = checkout.plan("--profile", profile, "results/table.md")
    assert plan.jobs == ALL | {"track": 5, "write_table": 1}


def test_metrics_of_one_experiment_need_that_experiment_only(checkout):
    plan = checkout.plan("--profile", "local", "results/vit_b_800/metrics.json")
    assert plan.trained == {"vit_b_800/0"}
    assert set(plan.jobs.values()) == {1}


@pytest.mark.parametrize(("rate", "name"), [("3e-4", "vit_b_300"), ("1e-4", "vit_b_1600")])
def test_the_stem_of_a_config_is_a_target(checkout, rate, name):
    plan = checkout.plan("--profile", "local", BASE.format(rate))
    assert plan.trained == {f"{name}/0"}


def test_the_demo_plans_seven_runs_from_generated_data(checkout):
    plan = checkout.plan("--profile", "demo")
    assert plan.jobs["fine_tune"] == 7
    assert plan.jobs["make_demo"] == 1
    assert plan.jobs["draw_figures"] == 1


def test_the_sweep_spans_its_grid(checkout):
    plan = checkout.plan("results/sweep/table.md", "--profile", "slurm", "--config",
                         "sheet=config/sweep.yaml")  # fmt: skip
    assert plan.jobs["inspect_checkpoint"] == 4
    assert plan.jobs["fine_tune"] == 45


def test_the_report_needs_table_and_figures(checkout):
    plan = checkout.plan("--profile", "local", "report.html")
    assert plan.jobs == ALL | {"track": 5, "write_table": 1, "draw_figures": 1, "write_report": 1}


def test_jobs_of_a_cluster_ask_for_the_gpus_of_their_row(checkout):
    plan = checkout.plan("--profile", "slurm", "results/table.md")
    trained = [message for message in plan.messages if message.startswith("Fine-tune")]
    assert all("8 GPUs on 1 node" in message for message in trained)


def test_a_machine_without_gpus_gives_none(checkout):
    output = checkout.run(
        "--dry-run", "--profile", "local", "results/table.md", CUDA_VISIBLE_DEVICES=""
    )
    assert "0 GPUs on 1 node" in output


@pytest.mark.parametrize(("asked", "got"), [("auto", "cpu"), ("cpu", "cpu"), ("cuda", "cuda")])
def test_a_row_that_asks_for_cuda_is_not_moved_to_the_cpu(checkout, asked, got):
    row = "  - {name: own, backbone: ViT-B, pretraining_epochs: 300, learning_rate: 5e-4, "
    with (checkout.path / "config/published.yaml").open("a") as sheet:
        sheet.write(f"{row}checkpoint: checkpoints/cae_base_300ep.pth, device: {asked}}}\n")
    output = checkout.run(
        *("--dry-run", "--printshellcmds", "--profile", "local", "results/own/metrics.json"),
        CUDA_VISIBLE_DEVICES="",
    )
    assert set(re.findall(r"--device=(\w+)", output)) == {got}


def test_a_machine_with_four_gpus_gives_a_run_no_more_than_four(checkout):
    smi = checkout.path / "bin/nvidia-smi"
    smi.write_text("#!/bin/sh\n" + "".join(f"echo 'GPU {n}: H100'\n" for n in range(4)))
    smi.chmod(0o755)
    plan = checkout.plan("--profile", "local", "results/vit_b_300/metrics.json")
    assert any("4 GPUs on 1 node" in message for message in plan.messages)


def test_a_checkpoint_may_lie_behind_a_url(checkout):
    file = "checkpoints/cae_base_300ep.pth"
    checkout.edit("config/published.yaml", file, "https://example.org/cae_base_300ep.pth")
    (checkout.path / file).unlink()
    plan = checkout.plan("--profile", "local", "results/vit_b_300/metrics.json")
    assert "Inspect the checkpoint https://example.org/cae_base_300ep.pth" in plan.messages


def test_rows_share_the_inspection_of_their_checkpoint(checkout):
    row = "  - {name: again, backbone: ViT-B, pretraining_epochs: 300, learning_rate: 5e-4, "
    with (checkout.path / "config/published.yaml").open("a") as sheet:
        sheet.write(row + "checkpoint: checkpoints/cae_base_300ep.pth}\n")
        sheet.write(row.replace("again, ", "other, ").replace("5e-4", "6e-4"))
        sheet.write("checkpoint: checkpoints/cae_base_300ep.pth}\n")
    targets = [f"results/{name}/metrics.json" for name in ("again", "other")]
    assert checkout.plan("--profile", "local", *targets).jobs["inspect_checkpoint"] == 1


def test_the_test_folder_of_the_workflow_catalogue_plans_the_demo(checkout):
    shutil.copytree(ROOT / ".test", checkout.path / ".test", symlinks=True)
    assert checkout.plan("--directory", ".test", "--cores", "2").jobs["fine_tune"] == 7


@pytest.mark.slow
def test_a_thousand_combinations_are_planned_in_steps_linear_in_rows_and_in_a_gigabyte(checkout):
    small, calls_of_small, _ = measured_plan(checkout, rows=100)
    large, calls_of_large, kilobytes = measured_plan(checkout, rows=1000)
    assert (small.jobs["fine_tune"], large.jobs["fine_tune"]) == (100, 1000)
    assert calls_of_large < 12 * calls_of_small
    assert kilobytes < 1e6


def measured_plan(checkout, rows):
    """Return the plan of a sheet of so many rows, its function calls, and its peak memory in kB."""
    rates = ", ".join(f"{n}e-6" for n in range(1, rows + 1))
    (checkout.path / "config/big.yaml").write_text(
        "grid: {backbone: ViT-B, pretraining_epochs: 1600, checkpoint: "
        f"checkpoints/cae_base_1600ep.pth, learning_rate: [{rates}]}}\n"
    )
    arguments = ["--dry-run", "results/table.md", "--profile", "slurm"]
    arguments += ["--config", "sheet=config/big.yaml"]
    (checkout.path / "measure.py").write_text(MEASURE)
    command = [sys.executable, "measure.py", *arguments]
    environment = checkout.environment()
    done = subprocess.run(
        command, cwd=checkout.path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    calls, kilobytes = map(int, (checkout.path / "measured.txt").read_text().split())
    return Plan(done.stdout + done.stderr), calls, kilobytes

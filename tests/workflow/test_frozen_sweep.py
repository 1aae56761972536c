"""Rows over one frozen backbone: one job for them, results for each."""

import pytest
from checkouts import Checkout

SHEET = """\
results: results/sweep_of_heads
data:
  source: data/demo/ADEChallengeData2016.zip
  root: data/demo/ade20k
  expected: {{training: 64, validation: 24}}
defaults: {{gpus: 0, cpus: 1, device: cpu, precision: fp32, iterations: 6}}
experiments:
{rows}
"""
ROW = (
    "  - {{name: {name}, backbone: ViT-tiny, pretraining_epochs: 300, checkpoint: "
    "data/demo/checkpoints/cae_tiny_300e.pth, {changes}}}"
)
ROWS = {
    "low": "learning_rate: 1e-3, frozen: true",
    "high": "learning_rate: 1e-2, frozen: true",
    "decay": "learning_rate: 1e-3, frozen: true, "
    "options: {optim_wrapper.optimizer.weight_decay: 0.1}",
    "fcn": "learning_rate: 1e-3, frozen: true, head: fcn",
    "longer": "learning_rate: 1e-3, frozen: true, iterations: 7",
    "trained": "learning_rate: 1e-3",
}
ARGUMENTS = ("--profile", "local", "--config", "sheet=sheet.yaml")


def write_sheet(checkout, rows):
    lines = [ROW.format(name=name, changes=changes) for name, changes in rows.items()]
    (checkout.path / "sheet.yaml").write_text(SHEET.format(rows="\n".join(lines)))


def test_rows_that_differ_in_rate_weight_decay_or_head_are_one_job(checkout):
    write_sheet(checkout, ROWS)
    plan = checkout.plan(*ARGUMENTS)
    assert plan.jobs["fine_tune_together"] == 1
    assert plan.jobs["collect_run"] == 4
    assert plan.trained == {"longer/0", "trained/0"}
    assert plan.jobs["evaluate"] == len(ROWS)


def test_a_single_frozen_row_trains_as_any_other(checkout):
    write_sheet(checkout, {name: ROWS[name] for name in ("low", "longer")})
    assert checkout.plan(*ARGUMENTS).trained == {"low/0", "longer/0"}


@pytest.fixture
def swept(checkout):
    """A checkout in which a sweep of three rows was run (by the stand-in)."""
    write_sheet(checkout, {name: ROWS[name] for name in ("low", "high", "fcn")})
    checkout.run(*ARGUMENTS)
    checkout.age()
    assert not checkout.plan(*ARGUMENTS).jobs
    return checkout


def changed_rate(rows):
    rows["high"] = rows["high"].replace("1e-2", "2e-2")


def further_row(rows):
    rows["decay"] = ROWS["decay"]


@pytest.mark.parametrize("change", [changed_rate, further_row])
def test_a_changed_or_further_row_runs_the_job_again(swept, change):
    rows = {name: ROWS[name] for name in ("low", "high", "fcn")}
    change(rows)
    write_sheet(swept, rows)
    plan = swept.plan(*ARGUMENTS)
    assert plan.jobs["fine_tune_together"] == 1
    assert plan.jobs["collect_run"] == plan.jobs["evaluate"] == len(rows)


@pytest.mark.slow
def test_a_row_that_fails_keeps_no_other_one_from_its_result(tmp_path):
    """The real commands: one of three rows diverges, and is the first to be looked at."""
    checkout = Checkout(tmp_path, stub=False)
    rows = {name: ROWS[name] for name in ("low", "fcn")}
    rows["high"] = "learning_rate: 1e30, frozen: true"
    write_sheet(checkout, rows)
    environment = {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}
    results = checkout.path / "results/sweep_of_heads"
    first = ("--cores", "1", "--prioritize", "results/sweep_of_heads/high/seed_0/run.json")
    done = checkout.snakemake(*first, "--retries", "0", *ARGUMENTS, **environment)
    assert done.returncode != 0
    finished = {file.parent.parent.name for file in results.glob("*/seed_0/metrics.json")}
    assert finished == {"low", "fcn"}, done.stderr[-3000:]
    assert "high" in done.stderr.splitlines()[-1] or "high, seed 0" in done.stderr
    write_sheet(checkout, rows | {"high": ROWS["high"]})
    checkout.run(*ARGUMENTS, **environment)
    assert (results / "table.md").read_text().count("ViT-tiny") == 3

"""Runs over one frozen backbone that train together: each ends as it does alone, to the bit."""

import json

import pytest
import torch

from cae_seg.cli import main
from cae_seg.engine.job import DONE, STOPPED, JointJob
from cae_seg.errors import UserError
from cae_seg.launch import rank
from cae_seg.launch.launcher import launch_together, launch_train
from cae_seg.models.backbones.frozen import Frozen
from cae_seg.run.deadline import StopSignal
from cae_seg.run.paths import RunDir

ROWS = {
    "slow": {"learning_rate": "1e-4"},
    "fast": {"learning_rate": "3e-3"},
    "decay": {
        "learning_rate": "1e-3",
        "cfg_options": {"model.frozen": True, "optim_wrapper.optimizer.weight_decay": 0.5},
    },
    "fcn": {
        "learning_rate": "1e-3",
        "cfg_options": {"model.frozen": True, "model.head": "fcn"},
    },
    "linear": {
        "learning_rate": "1e-3",
        "cfg_options": {"model.frozen": True, "model.head": "linear"},
    },
    "linear_4": {
        "learning_rate": "1e-3",
        "cfg_options": {"model.frozen": True, "model.head": "linear_4"},
    },
}
ITERATIONS = 6


class StopAfter(StopSignal):
    """A request to stop that comes at a moment counted in questions for it."""

    def __init__(self, looks: int) -> None:
        super().__init__()
        self._looks = looks

    @property
    def name(self) -> str | None:
        self._looks -= 1
        return "SIGTERM" if self._looks < 0 else None

    @name.setter
    def name(self, value: str | None) -> None:
        pass


@pytest.fixture
def make_row(make_job):
    """Make the job of a row, with a frozen backbone, in a folder of its own."""

    def make(row: str, folder: str, **changes):
        settings = {"cfg_options": {"model.frozen": True}, **ROWS.get(row, {}), **changes}
        return make_job(f"{folder}/{row}", ITERATIONS, **settings)

    return make


def outcome(job) -> dict:
    """Return what a finished run is known by: weights, losses, rates, scores."""
    run = RunDir(job.run_file.parent)
    history = run.history()
    loss = {i: (line["loss"], line["lr"]) for i, line in history.train.items()}
    weights = torch.load(run.work.weights, weights_only=True)["state_dict"]
    return {
        "weights": {name: value.numpy().tobytes() for name, value in weights.items()},
        "loss": loss,
        "mIoU": {i: line["mIoU"] for i, line in history.evaluations.items()},
        "identity": run.metadata()["identity"],
    }


@pytest.fixture(scope="module")
def alone(config, manifest, tmp_path_factory):
    """The rows, each trained alone."""
    from tiny_runs import job_in

    folder = tmp_path_factory.mktemp("alone")
    found = {}
    for name, settings in ROWS.items():
        settings = {"cfg_options": {"model.frozen": True}, **settings}
        job = job_in(folder / name, config, manifest, ITERATIONS, **settings)
        assert launch_train(job) == DONE
        found[name] = outcome(job)
    return found


@pytest.fixture
def passes(monkeypatch):
    """The passes of the backbone, counted."""
    counted = []
    compute = Frozen.compute

    def counting(self, x, taps=None):
        counted.append(tuple(x.shape))
        return compute(self, x, taps)

    monkeypatch.setattr(Frozen, "compute", counting)
    return counted


def test_each_run_ends_as_it_does_alone(make_row, alone):
    jobs = {row: make_row(row, "together") for row in ROWS}
    assert launch_together(JointJob(tuple(jobs.values()))) == DONE
    for row, job in jobs.items():
        assert outcome(job) == alone[row], row


def test_the_backbone_computes_once_for_all(make_row, passes):
    assert launch_train(make_row("slow", "alone")) == DONE
    one = len(passes)
    passes.clear()
    jobs = tuple(make_row(row, "together") for row in ("slow", "fast", "decay"))
    assert launch_together(JointJob(jobs)) == DONE
    assert len(passes) == one


def test_heads_that_read_other_blocks_share_the_pass(make_row, passes):
    assert launch_train(make_row("linear", "alone")) == DONE
    one = len(passes)
    passes.clear()
    jobs = tuple(make_row(row, "together") for row in ("slow", "linear", "linear_4", "fcn"))
    assert launch_together(JointJob(jobs)) == DONE
    assert len(passes) == one


@pytest.mark.parametrize("looks", [3, 20, 30])
def test_runs_that_were_stopped_continue_together(make_row, alone, looks):
    jobs = {row: make_row(row, "stopped") for row in ("slow", "linear", "linear_4")}
    together = JointJob(tuple(jobs.values()))
    assert rank.run(together, "cpu", StopAfter(looks)) == STOPPED
    assert launch_together(together) == DONE
    for row, job in jobs.items():
        assert outcome(job) == alone[row], row


def test_runs_that_begin_at_different_iterations_meet(make_row, alone):
    jobs = {row: make_row(row, "behind") for row in ("slow", "fast")}
    assert rank.run(jobs["fast"], "cpu", StopAfter(8)) == STOPPED
    assert launch_together(JointJob(tuple(jobs.values()))) == DONE
    for row, job in jobs.items():
        assert outcome(job) == alone[row], row


def test_a_run_that_fails_leaves_the_others_alone(make_row, alone):
    bad = make_row("bad", "mixed", learning_rate="1e-3", cfg_options={"model.frozen": False})
    good = make_row("slow", "mixed")
    with pytest.raises(UserError, match="1 of 2 runs failed: tiny"):
        launch_together(JointJob((bad, good)))
    assert outcome(good) == alone["slow"]
    assert "frozen" in json.loads((bad.work_dir / "failure.json").read_text())["error"]
    assert launch_together(JointJob((bad, good), keep_going=True)) == DONE
    with pytest.raises(UserError, match="2 of 2 runs failed"):
        launch_together(JointJob((bad, make_row("worse", "mixed", cfg_options={})), True))


@pytest.mark.slow
def test_two_ranks_train_runs_together_as_they_train_one(make_row):
    """Also where one of the runs fails on both."""
    alone = make_row("slow", "alone", gpus=2)
    assert launch_train(alone) == DONE
    jobs = [make_row(row, "pair", gpus=2) for row in ("slow", "fast")]
    jobs.append(make_row("trained", "pair", gpus=2, cfg_options={}))
    assert launch_together(JointJob(tuple(jobs), keep_going=True)) == DONE
    assert outcome(jobs[0]) == outcome(alone)


def test_runs_of_one_command_need_one_machine(make_row):
    with pytest.raises(UserError, match="--nodes: 1, 2: runs of one command need the same"):
        JointJob((make_row("slow", "a"), make_row("fast", "a", nodes=2)))
    with pytest.raises(UserError, match="is given to two runs"):
        JointJob((make_row("slow", "a"), make_row("slow", "a")))


def test_the_command_line_takes_several_runs(make_row, alone, capfd):
    jobs = {row: make_row(row, "command") for row in ("slow", "fast")}

    def words(job):
        return [
            *("--work-dir", str(job.work_dir), "--out", str(job.out), "--data", str(job.data)),
            *("--device", "cpu", "--iterations", str(ITERATIONS), "--options", "model.frozen=True"),
            *("--learning-rate", job.learning_rate, "--", str(job.config)),
        ]

    report = jobs["slow"].work_dir.parent / "report.json"
    first, second = map(words, jobs.values())
    assert main(["train", "--report", str(report), *first, "--next", *second]) == 0
    for row, job in jobs.items():
        assert outcome(job) == alone[row], row
    ended = json.loads(report.read_text())["runs"]
    assert [run["identity"] for run in ended] == [alone[row]["identity"] for row in jobs]
    assert main(["train", *first, "--next", "--report", str(report), *second]) == 2
    assert "--report: is for all runs; give it before the first --next" in capfd.readouterr().err
    assert main(["evaluate", *first, "--next", *second]) == 2

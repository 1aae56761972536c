"""Hooks of mmengine's and of a user's keep their state through any interruption."""

import sys
from pathlib import Path

import pytest
import torch
from interruptions import StopAfter, losses, same, weights

from cae_seg.engine.job import DONE, STOPPED, TrainJob
from cae_seg.errors import UserError
from cae_seg.launch import rank
from cae_seg.launch.launcher import launch_train
from cae_seg.run.paths import read_history

HOOKS = """
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS


@HOOKS.register_module(force=True)
class Halving(Hook):
    '''Halve a bias every third iteration that it has seen itself.'''

    def __init__(self):
        self.seen, self.history = 0, []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.seen += 1
        self.history.append(float(outputs["loss"]))
        if self.seen % 3 == 0:
            with torch.no_grad():
                runner.model.module.decode_head.conv_seg.bias.mul_(0.5).add_(self.history[0])


class Counter:
    value = 0


@HOOKS.register_module(force=True)
class Opaque(Hook):
    def __init__(self):
        self.counter = Counter()


@HOOKS.register_module(force=True)
class Drifting(Hook):
    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        with torch.no_grad():
            runner.model.module.decode_head.conv_seg.bias.add_(runner.rank)
"""


@pytest.fixture
def hooked(config, tmp_path, monkeypatch):
    """Write a config with custom hooks; the hooks' module is next to it."""
    (tmp_path / "my_hooks.py").write_text(HOOKS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    sys.modules.pop("my_hooks", None)

    def write(hooks: str, more: str = "") -> Path:
        path = tmp_path / "hooked.py"
        path.write_text(
            f'_base_ = "{config}"\n'
            'custom_imports = dict(imports=["cae_seg.registration", "my_hooks"])\n'
            f"custom_hooks = [{hooks}]\n{more}\n"
        )
        return path

    return write


def train_in_pieces(job: TrainJob) -> None:
    """Stop a run again and again until it is done."""
    codes = []
    for looks in (2, 1, 4, 3, 2, 5, 100):
        codes.append(rank.run(job, "cpu", StopAfter(looks)))
        if codes[-1] == DONE:
            break
    assert codes.count(STOPPED) >= 3
    assert codes[-1] == DONE


def files(job: TrainJob) -> dict[str, dict[str, torch.Tensor]]:
    """Return the weights that CheckpointHook has written, by file name."""
    found = sorted(job.work_dir.glob("*.pth"))
    states = {path.name: torch.load(path, weights_only=False)["state_dict"] for path in found}
    return {name: state for name, state in states.items() if name != "weights.pth"}


@pytest.mark.parametrize(
    ("hooks", "more"),
    [
        ("dict(type='EMAHook', momentum=0.3)", ""),
        ("dict(type='Halving')", ""),
        (
            "dict(type='EarlyStoppingHook', monitor='mIoU', min_delta=100, patience=2)",
            "train_cfg = dict(val_interval=2)",
        ),
        (
            "",
            "train_cfg = dict(val_interval=2)\n"
            "default_hooks = dict(checkpoint=dict(interval=2, save_best='mIoU', max_keep_ckpts=1))",
        ),
    ],
    ids=["EMA", "user's", "early stopping", "best and newest checkpoints"],
)
def test_a_run_in_pieces_equals_one_in_one_piece(make_job, hooked, hooks, more):
    config = hooked(hooks, more)
    whole, pieces = (make_job(name, config=config) for name in ("whole", "pieces"))
    assert launch_train(whole) == DONE
    train_in_pieces(pieces)
    assert same(weights(whole), weights(pieces))
    assert losses(whole) == losses(pieces)
    records = [read_history(job.work_dir / "metrics.jsonl") for job in (whole, pieces)]
    scores = [{i: e["mIoU"] for i, e in record.evaluations.items()} for record in records]
    assert scores[0] == scores[1]
    kept, again = files(whole), files(pieces)
    assert kept.keys() == again.keys()
    assert all(same(kept[name], again[name]) for name in kept)
    if "EarlyStopping" in hooks:
        assert len(losses(whole)) < 8
    if "save_best" in more:
        assert any(name.startswith("best_mIoU") for name in kept)


def test_hooks_belong_to_the_identity_of_a_run(make_job, hooked, undisturbed):
    from json import loads

    job = make_job(config=hooked("dict(type='Halving')"), iterations=1)
    plain = make_job("plain", iterations=1)
    assert launch_train(job) == launch_train(plain) == DONE
    assert loads(job.out.read_text())["identity"] != loads(plain.out.read_text())["identity"]


def test_a_hook_whose_state_cannot_be_saved_is_named(make_job, hooked, capsys):
    job = make_job(config=hooked("dict(type='Opaque')"), iterations=1)
    assert launch_train(job) == DONE
    assert "hook Opaque: its attribute counter cannot be saved" in capsys.readouterr().err


def test_ranks_that_drift_apart_are_noticed(make_job, hooked):
    job = make_job(config=hooked("dict(type='Drifting')"), gpus=2, iterations=3)
    with pytest.raises(UserError, match=r"decode_head.conv_seg.bias differs between rank 0 and"):
        launch_train(job)
    assert not list(job.work_dir.rglob("weights.pth"))

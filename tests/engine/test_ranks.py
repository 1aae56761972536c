"""Several ranks: parameters without gradients, three ranks, evaluation on any number of them."""

import dataclasses
import json
import signal
from pathlib import Path

import pytest
from interruptions import (
    finish,
    losses,
    ranks_of,
    run,
    same,
    started_and_held,
    trained,
    weights,
)

from cae_seg.engine.job import DONE, EvaluateJob
from cae_seg.launch.launcher import launch_evaluate
from cae_seg.run.paths import read_history

pytestmark = pytest.mark.slow


@pytest.fixture
def untrained_parts(gated) -> Path:
    """A gated config whose last block, behind the last tap, takes no part."""
    path = gated.with_name("untrained.py")
    path.write_text(
        f'_base_ = "{gated}"\nmodel = dict(backbone=dict(depth=5, out_indices=[0, 1, 2, 3]))\n'
    )
    return path


def test_three_ranks_with_parts_that_take_no_part_resume_to_the_bit(make_job, untrained_parts):
    settings = {"config": untrained_parts, "gpus": 3, "batch_size": 12, "deterministic": True}
    whole, pieces = (make_job(name, **settings) for name in ("whole", "pieces"))
    code, output = run(whole)
    assert code == 0, output
    with started_and_held(pieces, 3) as process:
        # A signal to one rank alone: all ranks stop after the same iteration.
        ranks_of(process)[1].send_signal(signal.SIGTERM)
        (pieces.work_dir.parent / "gate").unlink(missing_ok=True)
        code, output = finish(process)
    assert code == 75, output
    stopped_at = trained(pieces)
    assert (pieces.work_dir / "checkpoints" / f"iter_{stopped_at}.pth").is_file()
    code, output = run(pieces)
    assert code == 0, output
    assert same(weights(whole), weights(pieces))
    assert losses(whole) == losses(pieces)
    assert len(losses(whole)) == 8
    scores = [read_history(job.work_dir / "metrics.jsonl").evaluations for job in (whole, pieces)]
    assert [e["mIoU"] for e in scores[0].values()] == [e["mIoU"] for e in scores[1].values()]


def test_every_image_counts_once_on_any_number_of_ranks(undisturbed, tmp_path):
    found = []
    for count in (1, 2, 3):
        job = EvaluateJob(
            config=undisturbed.out.parent / "config.py",
            weights=undisturbed.work_dir / "weights.pth",
            data=undisturbed.data,
            device="cpu",
            gpus=count,
            out=tmp_path / f"metrics_{count}.json",
        )
        assert launch_evaluate(job) == DONE
        metrics = json.loads(job.out.read_text())
        found.append({key: metrics[key] for key in ("mIoU", "mAcc", "aAcc", "per_class")})
    assert found[0] == found[1] == found[2]


def test_augmented_evaluation_is_the_same_on_two_ranks(undisturbed, tmp_path):
    job = EvaluateJob(
        config=undisturbed.config,
        weights=undisturbed.work_dir / "weights.pth",
        data=undisturbed.data,
        device="cpu",
        out=tmp_path / "one.json",
        aug_test=True,
    )
    two = dataclasses.replace(job, gpus=2, out=tmp_path / "two.json")
    assert launch_evaluate(job) == launch_evaluate(two) == DONE
    one, other = (json.loads(each.out.read_text()) for each in (job, two))
    assert one["aug_test"] is other["aug_test"] is True
    assert one["per_class"] == other["per_class"]


def test_ranks_leave_nothing_in_the_temporary_folder(undisturbed, tmp_path, monkeypatch):
    job = EvaluateJob(
        config=undisturbed.config,
        weights=undisturbed.work_dir / "weights.pth",
        data=undisturbed.data,
        device="cpu",
        gpus=2,
        seed=1,  # another run's: else its scores are known
    )
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert launch_evaluate(job) == DONE
    assert not list(tmp_path.iterdir())

"""What only a GPU can show: precision, determinism, several devices."""

import json

import pytest
import torch

from cae_seg.engine.job import DONE
from cae_seg.launch.launcher import launch_train
from cae_seg.run.paths import read_history

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def _needs_gpu(monkeypatch, tmp_path):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    monkeypatch.setenv("CAE_SEG_GPU_LOCK_DIR", str(tmp_path / "leases"))
    (tmp_path / "leases").mkdir(mode=0o700)


def weights(job):
    return torch.load(job.work_dir / "weights.pth", weights_only=True)["state_dict"]


def losses(job):
    return [line["loss"] for line in read_history(job.work_dir / "metrics.jsonl").train.values()]


@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp32"])
def test_precision_trains_close_to_the_cpu(make_job, undisturbed, precision):
    job = make_job(device="cuda", precision=precision)
    assert launch_train(job) == DONE
    assert json.loads(job.out.read_text())["precision"] == precision
    assert losses(job) == pytest.approx(losses(undisturbed), rel=5e-2)


def test_deterministic_runs_are_identical(make_job):
    jobs = [make_job(name, device="cuda", deterministic=True) for name in ("one", "two")]
    for job in jobs:
        assert launch_train(job) == DONE
    first, second = (weights(job) for job in jobs)
    assert losses(jobs[0]) == losses(jobs[1])
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_scaler_survives_a_resume(make_job):
    """The loss scale of an interrupted fp16 run is that of an undisturbed one."""
    from cae_seg.launch import rank
    from cae_seg.run.deadline import StopSignal

    baseline = make_job("baseline", device="cuda", deterministic=True)
    assert launch_train(baseline) == DONE
    job = make_job("stopped", device="cuda", deterministic=True, time_budget=1e-4)
    assert launch_train(job) == 75
    assert (
        rank.run(make_job("stopped", device="cuda", deterministic=True), "cuda", StopSignal())
        == DONE
    )
    first, second = weights(baseline), weights(job)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_train_what_one_does(make_job):
    jobs = [make_job(f"gpus{n}", device="cuda", precision="fp32", gpus=n) for n in (1, 2)]
    for job in jobs:
        assert launch_train(job) == DONE
    assert losses(jobs[0]) == pytest.approx(losses(jobs[1]), rel=1e-3)

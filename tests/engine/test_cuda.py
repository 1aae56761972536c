"""What only a GPU can show: precision, determinism, several devices.

The loss scale is tested on the CPU too: `test_loss_scale.py`.
"""

import json
import math

import pytest
import torch
from mmengine.config import Config
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample

from cae_seg.engine.acceleration import accelerate
from cae_seg.engine.build import build_model
from cae_seg.engine.config import load_config
from cae_seg.engine.job import DONE
from cae_seg.engine.precision import allow_tf32
from cae_seg.launch.launcher import launch_train
from cae_seg.models.layers.stochastic import set_randomness
from cae_seg.models.ops.loss import upsampled_cross_entropy
from cae_seg.models.ops.resize import tile_shape
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
def test_precision_is_recorded_and_every_loss_is_finite(make_job, precision):
    job = make_job(device="cuda", precision=precision)
    assert launch_train(job) == DONE
    assert json.loads(job.out.read_text())["precision"] == precision
    assert all(math.isfinite(loss) for loss in losses(job))


def gradients(config: Config, device: str) -> dict[str, torch.Tensor]:
    """Return the gradients of a segmentor at the start of a training, masks fixed."""
    model = build_model(config, 0, start=True).to(device).train()
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(4, 3, 32, 32, generator=generator).to(device)
    labels = torch.randint(0, 150, (4, 1, 32, 32), generator=generator).to(device)
    samples = [SegDataSample(gt_sem_seg=PixelData(data=label)) for label in labels]
    set_randomness(model, seed=0, iteration=0, first_sample=0, samples=4, total=4)
    loss, _ = model.parse_losses(model.loss(images, samples))
    loss.backward()
    return {n: p.grad.cpu() for n, p in model.named_parameters() if p.grad is not None}


def test_gradients_of_a_segmentor_are_those_of_the_cpu(config):
    """In fp32; half precision and 1 025 tokens are compared in tests/models/test_fast_block.py.

    Gradients, not losses, which hardly move in the warm-up.
    """
    built = load_config(config)
    accelerate(built)
    allow_tf32(False)  # as a run does
    expected, found = gradients(built, "cpu"), gradients(built, "cuda")
    assert found.keys() == expected.keys()
    typical = sorted(float(grad.norm()) for grad in expected.values())[len(expected) // 4]
    for name, grad in expected.items():
        assert (found[name] - grad).norm() < 1e-2 * max(float(grad.norm()), typical), name


def test_gradients_of_the_loss_in_several_tiles_are_those_of_the_cpu():
    size = (512, 512)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 150, 128, 128, generator=generator)
    labels = torch.randint(0, 151, (4, *size), generator=generator)
    assert tile_shape(logits.permute(0, 2, 3, 1).to("cuda"), size)[0] < size[0]
    found = []
    for device in ("cuda", "cpu"):
        x = logits.to(device).requires_grad_()
        result = upsampled_cross_entropy(
            x, labels.to(device), ignore_index=150, align_corners=False, tiled=True
        )
        result.loss.backward()
        found.append((result.loss.detach().cpu(), x.grad.cpu()))
    for ours, expected in zip(*found, strict=True):
        assert (ours - expected).norm() < 1e-4 * expected.norm()


def test_deterministic_runs_are_identical(make_job):
    jobs = [make_job(name, device="cuda", deterministic=True) for name in ("one", "two")]
    for job in jobs:
        assert launch_train(job) == DONE
    first, second = (weights(job) for job in jobs)
    assert losses(jobs[0]) == losses(jobs[1])
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_train_what_one_does(make_job):
    jobs = [make_job(f"gpus{n}", device="cuda", precision="fp32", gpus=n) for n in (1, 2)]
    for job in jobs:
        assert launch_train(job) == DONE
    assert losses(jobs[0]) == pytest.approx(losses(jobs[1]), rel=1e-3)

"""The loss scale of mixed precision survives an interruption, overflows included."""

import functools
import itertools
from pathlib import Path

import mmengine.optim.optimizer.amp_optimizer_wrapper as amp
import pytest
import torch
from interruptions import StopAfter, same, weights
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from tiny_runs import TINY

from cae_seg.engine import precision
from cae_seg.engine.job import DONE, STOPPED
from cae_seg.launch import rank
from cae_seg.run.deadline import StopSignal

# Loss scales that overflow at first, in float32 and in float16; they double after two good steps.
START = {"cpu": 2.0**127, "cuda": 2.0**30}
states: list[dict] = []


@HOOKS.register_module()
class ScalerStates(Hook):
    """Note the scaler's state after each iteration."""

    def after_train_iter(self, runner, *_args, **_kwargs) -> None:
        """Note it."""
        states.append(runner.optim_wrapper.loss_scaler.state_dict())


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request, monkeypatch, tmp_path) -> str:
    """A device that trains with a scaler."""
    if request.param == "cuda":
        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")
        monkeypatch.setenv("CAE_SEG_GPU_LOCK_DIR", str(tmp_path))
    else:
        # The wrapper refuses to be made on the CPU, where its autocast and torch's scaler work.
        monkeypatch.setattr(amp, "is_cuda_available", lambda: True)
        monkeypatch.setattr(amp, "GradScaler", functools.partial(torch.amp.GradScaler, "cpu"))
        monkeypatch.setitem(precision._WRAPPERS, "fp32", {"type": "AmpOptimWrapper"})
    return request.param


def scaled_config(folder: Path, device: str) -> Path:
    """Write a config that trains with a dynamic loss scale."""
    scale = {"init_scale": START[device], "growth_interval": 2}
    path = folder / "scaled.py"
    path.write_text(
        f"{TINY}\noptim_wrapper = dict(type='AmpOptimWrapper', loss_scale={scale})\n"
        "custom_hooks = [dict(type='ScalerStates')]\n"
    )
    return path


def test_a_run_stopped_after_an_overflow_scales_on_as_if_it_had_not_been(
    make_job, device, tmp_path
):
    options = {
        "config": scaled_config(tmp_path, device),
        "device": device,
        "deterministic": device == "cuda",
        "iterations": 6,
        "cfg_options": {"model.decode_head.loss_decode.loss_weight": 60.0},  # large gradients
    }
    states.clear()
    whole = make_job("whole", **options)
    assert rank.run(whole, device, StopSignal()) == DONE
    expected = list(states)
    scales = [state["scale"] for state in expected]
    assert min(scales) < START[device]  # there was an overflow
    assert any(after > before for before, after in itertools.pairwise(scales))

    states.clear()
    job = make_job("stopped", **options)
    assert rank.run(job, device, StopAfter(3)) == STOPPED
    stopped_at = len(states)
    assert 0 < stopped_at < 6
    # What a scaler that is made again would not know.
    assert states[-1]["scale"] != START[device]
    assert rank.run(job, device, StopSignal()) == DONE
    assert states == expected
    assert same(weights(job), weights(whole))

"""A run whose loss or weights are no numbers stops, failed, with its last good checkpoint."""

import json

import pytest
import torch

from cae_seg.errors import UserError
from cae_seg.launch.launcher import launch_train
from cae_seg.run.nonfinite import LossGuard


def test_a_run_that_diverges_fails_and_keeps_its_last_good_checkpoint(make_job):
    options = {"default_hooks.checkpoint.interval": 1, "default_hooks.logger.interval": 1}
    job = make_job(learning_rate="1e30", cfg_options=options)
    with pytest.raises(UserError, match=r"iteration \d+: .* NaN or Inf.*last good checkpoint"):
        launch_train(job)
    assert not job.out.exists()
    assert not (job.work_dir / "weights.pth").exists()
    kept = sorted((job.work_dir / "checkpoints").glob("iter_*.pth"))
    assert kept
    for path in kept:
        found = torch.load(path, map_location="cpu", weights_only=True)
        tensors = [value for value in found["state_dict"].values() if value.is_floating_point()]
        assert all(tensor.isfinite().all() for tensor in tensors)
    failure = json.loads((job.work_dir / "failure.json").read_text())
    assert "NaN or Inf" in failure["error"]


def test_single_losses_that_are_no_number_are_tolerated():
    guard = LossGuard(patience=3)
    nan, inf = float("nan"), float("inf")
    assert [guard.check(n, loss) for n, loss in enumerate([1.0, nan, inf, 2.0, nan, nan, 1.0])] == [
        True, False, False, True, False, False, True,
    ]  # fmt: skip
    guard.check(7, inf)
    guard.check(8, nan)
    with pytest.raises(UserError, match="iteration 9: the loss was NaN or infinite 3 times"):
        guard.check(9, nan)

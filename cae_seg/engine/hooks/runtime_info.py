"""mmengine's runtime information without waiting for the device in each iteration."""

from typing import Any

import torch
from mmengine.hooks import LoggerHook, RuntimeInfoHook
from mmengine.logging import HistoryBuffer
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor

from cae_seg.engine.state import HISTORY


@HOOKS.register_module()
class QuietRuntimeInfoHook(RuntimeInfoHook):
    """`RuntimeInfoHook` that hands losses to the message hub when they are logged, all at once.

    The stock hook converts each loss to a number in each iteration, which waits for the GPU, and
    keeps a million values of each, which makes checkpoints of 23 MB.
    """

    def before_run(self, runner: Runner) -> None:
        """Learn when losses are logged."""
        super().before_run(runner)
        intervals = [hook.interval for hook in runner.hooks if isinstance(hook, LoggerHook)]
        self._interval = min(intervals, default=HISTORY)
        self._pending: list[dict[str, Any]] = []

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Note the learning rates."""
        hub = runner.message_hub
        hub.update_info("iter", runner.iter)
        for name, rates in runner.optim_wrapper.get_lr().items():
            self._buffer(runner, f"train/{name}")
            hub.update_scalar(f"train/{name}", rates[0])

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: dict[str, Any] | None = None,
    ) -> None:
        """Keep the losses; hand them over when they are due."""
        self._pending.append(dict(outputs or {}))
        if (runner.iter + 1) % self._interval == 0 or len(self._pending) >= HISTORY:
            self._flush(runner)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Hand over what is pending: the hub's state is saved next."""
        self._flush(runner)

    def _flush(self, runner: Runner) -> None:
        names = [name for losses in self._pending for name in losses]
        values = [value for losses in self._pending for value in losses.values()]
        for name, value in zip(names, _numbers(values), strict=True):
            self._buffer(runner, f"train/{name}")
            runner.message_hub.update_scalar(f"train/{name}", value)
        self._pending.clear()

    @staticmethod
    def _buffer(runner: Runner, key: str) -> None:
        """Make sure that the history of a scalar is a short one."""
        if key not in runner.message_hub.log_scalars:
            runner.message_hub.log_scalars[key] = HistoryBuffer(max_length=HISTORY)


def _numbers(values: list[Any]) -> list[float]:
    """Convert tensors and numbers, with one copy from the device."""
    tensors = [value.detach().double().mean() for value in values if isinstance(value, Tensor)]
    copied = iter(torch.stack(tensors).tolist() if tensors else [])
    return [next(copied) if isinstance(value, Tensor) else float(value) for value in values]

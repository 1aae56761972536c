"""Write losses, learning rate and speed of a run to its metrics log."""

import logging
import math
import time
from typing import Any

import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from cae_seg.engine.ranks import all_reduce_mean
from cae_seg.run.nonfinite import LossGuard

logger = logging.getLogger("cae_seg")


@HOOKS.register_module()
class MetricsHook(Hook):
    """Append a line to the metrics log every so many iterations: exact values, not windowed means.

    Args:
        interval: iterations between two lines.
    """

    priority = "VERY_HIGH"  # before the schedulers step
    stateless = True  # clocks and a count that may start again

    def __init__(self, interval: int) -> None:
        self._interval = interval
        self._guard = LossGuard()
        self._restart_clock()

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Note this iteration's learning rate, and ask for the gradients' norm where it is due."""
        self._rate = max(group["lr"] for group in runner.optim_wrapper.param_groups)
        runner.model.wants_norm = self._due(runner)
        self._begin = time.monotonic()

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: dict[str, Any] | None = None,
    ) -> None:
        """Write one line if it is due."""
        self._count += 1
        self._seconds += time.monotonic() - self._begin + runner.data_seconds
        self._data_seconds += runner.data_seconds
        if self._due(runner):
            self._write(runner, dict(outputs or {}))

    def _write(self, runner: Runner, outputs: dict[str, Any]) -> None:
        session, iteration = runner.session, runner.iter + 1
        norm = outputs.pop("grad_norm", None)
        names = sorted(outputs)
        means = all_reduce_mean([float(outputs[name]) for name in names])
        values = dict(zip(names, means, strict=True))
        if not math.isfinite(values.get("loss", 0.0)):
            self._warn_of_loss(runner, iteration)
        session.metrics.write(
            "train",
            iteration=iteration,
            **values,
            lr=self._rate,
            grad_norm=norm,
            images_per_second=session.split.global_batch * self._count / self._seconds,
            data_seconds=self._data_seconds / self._count,
            gpu_memory_mb=_peak_memory(session.device),
        )
        self._restart_clock()
        self._guard.check(iteration, values.get("loss", 0.0))

    def _due(self, runner: Runner) -> bool:
        return (runner.iter + 1) % self._interval == 0

    def _restart_clock(self) -> None:
        self._count, self._seconds, self._data_seconds = 0, 0.0, 0.0

    @staticmethod
    def _warn_of_loss(runner: Runner, iteration: int) -> None:
        text = "the loss is NaN or infinite; training is unlikely to recover, lower the rate"
        if is_main_process():
            logger.warning("iteration %d: %s", iteration, text)
        runner.session.metrics.event("warning", iteration=iteration, message=text)


def _peak_memory(device: torch.device) -> float | None:
    """Return the largest memory of a GPU so far, MiB."""
    return torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else None

"""The load of the machine during training, for MLflow's tab of system metrics."""

import contextlib
import time
from pathlib import Path
from typing import Any

import psutil
import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

SECONDS = 30.0
_MEGABYTE = 1e6  # as MLflow's system metrics count


@HOOKS.register_module()
class SystemMetricsHook(Hook):
    """Sample CPU, memory, disk, network and GPUs of the first rank's machine.

    Names and units are those of MLflow's own monitor. The first sample follows the first
    iteration, so that short runs have one too.

    Args:
        seconds: between two samples.
    """

    stateless = True

    def __init__(self, seconds: float = SECONDS) -> None:
        self._seconds = seconds
        self._due = 0.0

    def before_train(self, runner: Runner) -> None:
        """Start the counters that are read as differences."""
        psutil.cpu_percent()
        self._network = psutil.net_io_counters()

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: dict[str, Any] | None = None,
    ) -> None:
        """Write one line if it is due."""
        now = time.monotonic()
        if is_main_process() and now >= self._due:
            self._due = now + self._seconds
            values = {**self._machine(Path(runner.work_dir)), **_gpus()}
            runner.session.metrics.write("system", iteration=runner.iter + 1, **values)

    def _machine(self, folder: Path) -> dict[str, float]:
        memory, disk = psutil.virtual_memory(), psutil.disk_usage(str(folder))
        before, network = self._network, psutil.net_io_counters()
        return {
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "system_memory_usage_megabytes": memory.used / _MEGABYTE,
            "system_memory_usage_percentage": memory.percent,
            "disk_usage_megabytes": disk.used / _MEGABYTE,
            "disk_usage_percentage": disk.percent,
            "network_receive_megabytes": (network.bytes_recv - before.bytes_recv) / _MEGABYTE,
            "network_transmit_megabytes": (network.bytes_sent - before.bytes_sent) / _MEGABYTE,
        }


def _gpus() -> dict[str, float]:
    """Return the load of the visible GPUs; what the driver does not tell is left out."""
    values: dict[str, float] = {}
    for device in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(device)
        values[f"gpu_{device}_memory_usage_megabytes"] = (total - free) / _MEGABYTE
        values[f"gpu_{device}_memory_usage_percentage"] = 100 * (1 - free / total)
        with contextlib.suppress(Exception):  # no NVML, or a GPU that does not report its load
            values[f"gpu_{device}_utilization_percentage"] = torch.cuda.utilization(device)
            values[f"gpu_{device}_power_usage_watts"] = torch.cuda.power_draw(device) / 1000
    return values

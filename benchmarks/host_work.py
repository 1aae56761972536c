"""Case: what the main thread does in an iteration of training besides `train_step`.

The loop's own work: the batch from the loader, agreement between ranks, hooks, logging. A GPU that
has finished a step waits for it. In processor time of that thread, so that waiting for the loader's
workers or for another rank does not count. The masks, drawn within `train_step`, are in `counts`.
On a GPU a thread of its own receives batches and pins them; here the main thread does.
"""

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.dataset import pseudo_collate
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from torch.utils.data import DataLoader, Dataset

from benchmarks.demo import ROOT, command, draw_data, run
from benchmarks.models import BASE, CONFIGS, TINY
from benchmarks.suite import Options, case
from cae_seg.data.handover import whole_batch

RANKS = 2
IMAGES = 2  # of a rank
CROP = 64  # a batch is handed over by its address, whatever its size
ITERATIONS = 60
FIRST = 10  # iterations before those that count
CONFIG = """\
_base_ = [{base!r}]
custom_imports = dict(imports=["cae_seg.registration", "benchmarks.host_work"])
custom_hooks = [
    dict(type="StepEnds", priority="HIGHEST"),
    dict(type="StepBegins", priority="LOWEST", file={file!r}),
]
default_hooks = dict(checkpoint=dict(interval=10**6))
"""


@case("host_work")
def host_work(options: Options) -> list[dict[str, Any]]:
    """Measure a run of two ranks on the CPU; the loop is the same on GPUs."""
    if options.device != "cpu":
        return []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        milliseconds = _train(folder, TINY if options.quick else BASE)
    received = {
        side: _receive(collate)
        for side, collate in (("stock", pseudo_collate), ("ours", whole_batch))
    }
    return [
        {
            "what": f"an iteration besides train_step, ViT-B, {RANKS} ranks of {IMAGES} images",
            "iterations": len(milliseconds),
            "milliseconds_of_main_thread": statistics.median(milliseconds),
            "milliseconds_mean": statistics.fmean(milliseconds),
            "wanted_milliseconds": "≤ 1",
        },
        *(
            {
                "what": f"of it a batch of {IMAGES} images received, {side}",
                "milliseconds_of_main_thread": statistics.median(times),
            }
            for side, times in received.items()
        ),
    ]


def _train(folder: Path, stem: str) -> list[float]:
    """Train; return the milliseconds between steps of each iteration of the first rank."""
    config, measured = folder / "config.py", folder / "measured.json"
    config.write_text(CONFIG.format(base=str(CONFIGS / f"{stem}.py"), file=str(measured)))
    words = command(f"train {config}", work_dir=folder / "work", data=draw_data(folder))
    words += ["--device", "cpu", "--gpus", str(RANKS), "--batch-size", str(RANKS * IMAGES)]
    words += ["--workers", "1"]  # as on a GPU, where the main thread reads no images
    words += ["--iterations", str(ITERATIONS), "--crop-size", str(CROP), str(CROP)]
    words += ["--cfg-options", "train_cfg.val_begin=1000000"]  # no evaluation at the end
    run(words, env={**os.environ, "PYTHONPATH": str(ROOT)})
    return json.loads(measured.read_text())[FIRST:]


class _Crops(Dataset):
    """Crops and labels as the transforms make them."""

    def __len__(self) -> int:
        return ITERATIONS * IMAGES

    def __getitem__(self, index: int) -> dict[str, Any]:
        label = torch.zeros(1, CROP, CROP, dtype=torch.uint8)
        sample = SegDataSample(gt_sem_seg=PixelData(data=label))
        return {"inputs": torch.zeros(3, CROP, CROP, dtype=torch.uint8), "data_samples": sample}


def _receive(collate: Callable[[Sequence[Any]], Any]) -> list[float]:
    """Return the milliseconds of this thread for each batch from a loader process."""
    batches = iter(DataLoader(_Crops(), IMAGES, num_workers=1, collate_fn=collate))
    times = []
    for _ in range(ITERATIONS):
        begin = time.thread_time()
        next(batches)
        times.append(1e3 * (time.thread_time() - begin))
    return times[FIRST:]


_ended: list[float] = []


@HOOKS.register_module()
class StepEnds(Hook):
    """Note when a step is over; before all other hooks."""

    stateless = True

    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Note the processor time of this thread."""
        _ended.append(time.thread_time())


@HOOKS.register_module()
class StepBegins(Hook):
    """Note how long after the last step the next one begins; after all other hooks.

    Args:
        file: where the first rank writes milliseconds, one number an iteration.
    """

    stateless = True

    def __init__(self, file: str) -> None:
        self._file = Path(file)
        self._between: list[float] = []

    def before_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Note the processor time since `StepEnds`."""
        if _ended:
            self._between.append(1e3 * (time.thread_time() - _ended[-1]))

    def after_train(self, runner: Runner) -> None:
        """Write the list."""
        if runner.rank == 0:
            self._file.write_text(json.dumps(self._between))

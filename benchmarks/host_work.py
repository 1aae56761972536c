"""Case: what the main thread does in an iteration of training besides `train_step`.

The loop's own work: the batch from the loader, agreement between ranks, hooks, logging. A GPU that
has finished a step waits for it. In processor time of that thread, so that waiting for the loader's
workers or for another rank does not count. The masks, drawn within `train_step`, are in `counts`.

Measured twice, with the layers of ViT-B, but narrow: with a `train_step` that does nothing, and
with one that computes, after which the processor's caches hold nothing of the loop. The main
thread of a GPU, which starts kernels meanwhile, lies between the two. On a GPU a thread of its own
receives batches and pins them; here the main thread does, which is told apart.
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

from benchmarks.demo import command, draw_data
from benchmarks.models import BASE, CONFIGS
from benchmarks.suite import ROOT, Options, case, run
from cae_seg.data.handover import whole_batch

RANKS = 2
IMAGES = 2  # of a rank
CROP = 64  # a batch is handed over by its address, whatever its size
WIDTH = 48
ITERATIONS = 60
FIRST = 10  # iterations before those that count
CONFIG = """\
_base_ = [{base!r}]
custom_imports = dict(imports=["cae_seg.registration", "benchmarks.host_work"])
custom_hooks = [
    dict(type="StepEnds", priority="HIGHEST"),
    dict(type="StepBegins", priority="LOWEST", file={file!r}, computes={computes}),
]
default_hooks = dict(checkpoint=dict(interval=10**6))
model = dict(
    backbone=dict(embed_dim={width}),
    decode_head=dict(in_channels=[{width}] * 4, channels={width}),
    auxiliary_head=dict(in_channels={width}, channels={width}),
)
"""


@case("host_work")
def host_work(options: Options) -> list[dict[str, Any]]:
    """Measure a run of two ranks on the CPU; the loop is the same on GPUs."""
    if options.device != "cpu":
        return []
    rows = []
    with tempfile.TemporaryDirectory() as name:
        manifest = draw_data(Path(name))
        for title, computes in (("that does nothing", False), ("of narrow layers", True)):
            found = _train(Path(name) / str(computes), manifest, computes=computes)
            rows += _rows(title, *found)
    rows[0]["wanted_milliseconds"] = "≤ 1"
    for side, collate in (("stock", pseudo_collate), ("ours", whole_batch)):
        title = f"the receipt of {IMAGES} images by itself, {side}"
        rows.append({"what": title, **_milliseconds(_receive(collate))})
    return rows


def _rows(title: str, between: list[float], receiving: list[float]) -> list[dict[str, Any]]:
    work = f"{RANKS} ranks of {IMAGES} images, a train_step {title}"
    return [
        {"what": f"an iteration besides its batch, {work}", **_milliseconds(between)},
        {"what": "the receipt of the batch there", **_milliseconds(receiving)},
    ]


def _milliseconds(times: list[float]) -> dict[str, float]:
    """Describe the main thread's times."""
    return {
        "iterations": len(times),
        "milliseconds_median": statistics.median(times),
        "milliseconds_mean": statistics.fmean(times),
    }


def _train(folder: Path, manifest: Path, *, computes: bool) -> tuple[list[float], list[float]]:
    """Train; return the first rank's milliseconds between steps, and for receiving a batch."""
    config, measured = folder / "config.py", folder / "measured.json"
    base = str(CONFIGS / f"{BASE}.py")
    folder.mkdir()
    config.write_text(CONFIG.format(base=base, file=str(measured), computes=computes, width=WIDTH))
    words = command(f"train {config}", work_dir=folder / "work", data=manifest)
    words += ["--device", "cpu", "--gpus", str(RANKS), "--batch-size", str(RANKS * IMAGES)]
    words += ["--workers", "1"]  # as on a GPU, where the main thread reads no images
    words += ["--iterations", str(ITERATIONS), "--crop-size", str(CROP), str(CROP)]
    words += ["--cfg-options", "train_cfg.val_begin=1000000"]  # no evaluation at the end
    run(words, env={**os.environ, "PYTHONPATH": str(ROOT)})
    receiving, between = zip(*json.loads(measured.read_text())[FIRST:], strict=True)
    return list(between), list(receiving)


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


class _Timed:
    """The loop's batches.

    Attributes:
        milliseconds: of this thread, for the last one.
    """

    def __init__(self, batches: Any) -> None:
        self._batches, self.milliseconds = batches, 0.0

    def __next__(self) -> Any:
        begin = time.thread_time()
        batch = next(self._batches)
        self.milliseconds = 1e3 * (time.thread_time() - begin)
        return batch

    def skip_iter(self, count: int) -> None:
        self._batches.skip_iter(count)


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
        file: where the first rank writes pairs of milliseconds, one an iteration: for receiving
            its batch, and for all else.
        computes: whether `train_step` does its work.
    """

    stateless = True

    def __init__(self, file: str, computes: bool) -> None:
        self._file, self._computes = Path(file), computes
        self._found: list[tuple[float, float]] = []

    def before_train(self, runner: Runner) -> None:
        """Time the batches; take the work out of a step."""
        loop = runner.train_loop
        loop.dataloader_iterator = _Timed(loop.dataloader_iterator)
        if not self._computes:
            runner.model.train_step = lambda *_, **__: {"loss": torch.ones(())}

    def before_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Note the processor time since `StepEnds`."""
        if _ended:
            receiving = runner.train_loop.dataloader_iterator.milliseconds
            between = 1e3 * (time.thread_time() - _ended[-1])
            self._found.append((receiving, between - receiving))

    def after_train(self, runner: Runner) -> None:
        """Write the pairs."""
        if runner.rank == 0:
            self._file.write_text(json.dumps(self._found))

"""Case 3: from the JPEG and PNG of a pair to a batch, per core."""

import functools
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
import torch
from mmengine.dataset import pseudo_collate
from mmengine.registry import init_default_scope
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from benchmarks.suite import Options, case
from benchmarks.turns import Seconds, against_stock, in_turns, timed
from cae_seg.data.sampling import seeded_generators
from cae_seg.data.transforms import TrainTransform

# (height, width) of a dozen images, in the shares of ADE20K: its short side is mostly 512
SIZES = [(512, 683)] * 7 + [(683, 512)] * 3 + [(256, 256), (900, 1200)]
BATCH = 12


@case("transforms")
def transforms(options: Options) -> list[dict[str, Any]]:
    """Measure processor time, which other load on the machine hardly changes."""
    if options.device != "cpu":
        return []
    init_default_scope("mmseg")
    with tempfile.TemporaryDirectory() as folder:
        pairs = [_draw_pair(Path(folder), *size, seed) for seed, size in enumerate(SIZES)]
        agreement = _agreement(pairs)
        return [
            _compare("train transforms, one image", 2.0, _in_process, pairs, agreement, options),
            _compare("the same, hand-over included", None, _in_worker, pairs, agreement, options),
        ]


def _compare(
    what: str,
    target: float | None,
    measure: Callable[[Dataset, int], Seconds],
    pairs: list[dict[str, str]],
    agreement: str,
    options: Options,
) -> dict[str, Any]:
    batches = 2 if options.quick else 10
    sides = {
        side: functools.partial(measure, Pairs(pairs, fast=side == "ours"), batches)
        for side in ("stock", "ours")
    }
    row = against_stock(in_turns(sides, options.rounds, by="processor"), by="processor")
    for side in sides:
        row[f"{side}_images_per_second_and_core"] = 1 / row[side]
        row[side] *= 1e3
    return {"what": what, "unit": "ms of a core", "target": target, "agreement": agreement, **row}


class Pairs(Dataset):
    """Endless samples with the published parameters; the same draws on either path."""

    def __init__(self, pairs: list[dict[str, str]], fast: bool) -> None:
        self.pairs = pairs
        self.transform = TrainTransform(fast=fast)

    def __len__(self) -> int:
        return 1_000_000

    def __getitem__(self, index: int) -> dict[str, Any]:
        with seeded_generators(0, index):
            pair = self.pairs[index % len(self.pairs)]
            return self.transform(pair | {"reduce_zero_label": True, "seg_fields": []})


def _in_process(dataset: Dataset, batches: int) -> Seconds:
    """Return the time per image from files to batches, after a first one."""
    iterator = iter(DataLoader(dataset, BATCH, num_workers=0, collate_fn=pseudo_collate))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a worker
    next(iterator)
    taken = timed(lambda: _take(iterator, batches))
    torch.set_num_threads(threads)
    return Seconds(*(seconds / (batches * BATCH) for seconds in taken))


def _in_worker(dataset: Dataset, batches: int) -> Seconds:
    """Return the same for a worker, which hands batches over to another process."""
    iterator = iter(DataLoader(dataset, BATCH, num_workers=1, collate_fn=pseudo_collate))
    # The worker runs ahead by two batches; what it does then is measured, too.
    next(iterator)
    worker = psutil.Process().children()[-1]
    clock, processor = time.perf_counter(), sum(worker.cpu_times()[:2])
    _take(iterator, batches)
    taken = time.perf_counter() - clock, sum(worker.cpu_times()[:2]) - processor
    return Seconds(*(seconds / (batches * BATCH) for seconds in taken))


def _take(iterator: Iterator[Any], batches: int) -> None:
    for _ in range(batches):
        next(iterator)


def _agreement(pairs: list[dict[str, str]]) -> str:
    stock, ours = Pairs(pairs, fast=False), Pairs(pairs, fast=True)
    for index in range(3 * len(pairs)):
        one, other = stock[index], ours[index]
        labels = [sample["data_samples"].gt_sem_seg.data.long() for sample in (one, other)]
        if not (torch.equal(one["inputs"], other["inputs"]) and torch.equal(*labels)):
            return f"sample {index} differs"
    return f"{3 * len(pairs)} samples identical"


def _draw_pair(folder: Path, height: int, width: int, seed: int) -> dict[str, str]:
    """Write a photograph-like JPEG of some 45 kB at 512 × 683, and blobs of twelve classes."""
    rng = np.random.default_rng(seed)
    image = np.full((height, width, 3), 120.0)
    for grain, strength in ((4, 60), (16, 35), (64, 16), (128, 7)):
        coarse = rng.normal(0, strength, (grain + 1, grain * width // height + 1, 3))
        image += cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    image += rng.normal(0, 3, image.shape)
    fields = cv2.resize(rng.normal(0, 1, (8, 11, 12)), (width, height))
    label = fields.argmax(-1).astype(np.uint8) * 9
    paths = str(folder / f"{seed}.jpg"), str(folder / f"{seed}.png")
    cv2.imwrite(paths[0], image.clip(0, 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 75])
    Image.fromarray(label).save(paths[1])
    return {"img_path": paths[0], "seg_map_path": paths[1]}

"""Case 3: from the JPEG and PNG of a pair to a batch, per core."""

import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
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
    measure: Callable[[Dataset, int], float],
    pairs: list[dict[str, str]],
    agreement: str,
    options: Options,
) -> dict[str, Any]:
    batches, rounds = (2, 1) if options.quick else (10, options.rounds or 9)
    sides = {"stock": Pairs(pairs, fast=False), "ours": Pairs(pairs, fast=True)}
    times: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(rounds):
        for side, dataset in sides.items():
            times[side].append(1e3 * measure(dataset, batches))
    medians = {side: statistics.median(values) for side, values in times.items()}
    return {
        "what": what,
        "unit": "ms of a core",
        "target": target,
        "agreement": agreement,
        **medians,
        "ratio": medians["stock"] / medians["ours"],
        "stock_images_per_second_and_core": 1e3 / medians["stock"],
        "ours_images_per_second_and_core": 1e3 / medians["ours"],
    }


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


def _in_process(dataset: Dataset, batches: int) -> float:
    """Return the processor time per image from files to batches, after a first one."""
    iterator = iter(DataLoader(dataset, BATCH, num_workers=0, collate_fn=pseudo_collate))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a worker
    next(iterator)
    begin = time.process_time()
    for _ in itertools.repeat(None, batches):
        next(iterator)
    torch.set_num_threads(threads)
    return (time.process_time() - begin) / (batches * BATCH)


def _in_worker(dataset: Dataset, batches: int) -> float:
    """Return the same for a worker, which hands batches over to another process."""
    iterator = iter(DataLoader(dataset, BATCH, num_workers=1, collate_fn=pseudo_collate))
    # The worker runs ahead by two batches; what it does then is measured, too.
    next(iterator)
    worker = psutil.Process().children()[-1]
    begin = sum(worker.cpu_times()[:2])
    for _ in itertools.repeat(None, batches):
        next(iterator)
    return (sum(worker.cpu_times()[:2]) - begin) / (batches * BATCH)


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

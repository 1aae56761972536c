"""Case 2: evaluation end to end, from JPEG files to the mIoU; and how it scales over workers."""

import copy
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmseg.evaluation import IoUMetric
from mmseg.registry import DATASETS
from torch import nn
from torch.utils.data import DataLoader

from benchmarks.models import BASE, TINY, build_ours, build_stock, load_config
from benchmarks.suite import Options, case
from benchmarks.turns import alternate, timed
from cae_seg.engine.acceleration import accelerate
from cae_seg.engine.data_set import point_to
from cae_seg.engine.evaluation import build_tester
from cae_seg.engine.runner import ExactRunner
from cae_seg.engine.session import Session
from cae_seg.engine.workers import default_workers
from cae_seg.run.deadline import StopSignal

# (height, width): the commonest shape of ADE20K's validation images, and a mix like the rest.
PLAIN = [(512, 683)] * 3
MIXED = [(512, 683), (683, 512), (256, 341), (768, 1024), (512, 512), (600, 449), (1024, 1536)]
SCALING_IMAGES = 4


@case("evaluation")
def evaluation(options: Options) -> list[dict[str, Any]]:
    """Measure both sets of images; on CUDA ours in half precision too (stock stays in single)."""
    target, repeat, precisions = 2.5, 1, ["fp32"]
    if options.device == "cuda":
        target, repeat, precisions = 4.0, 8, ["fp32", "fp16"]
    sets = [("512 × 683", PLAIN * repeat), ("mixed sizes", MIXED * repeat)]
    stem = TINY if options.quick else BASE
    return [
        measure_evaluation(
            f"{name}, {precision}", load_config(stem), sizes, target, precision, options
        )
        for precision in precisions
        for name, sizes in sets
    ]


def measure_evaluation(
    name: str,
    config: Config,
    sizes: list[tuple[int, int]],
    target: float,
    precision: str,
    options: Options,
) -> dict[str, Any]:
    """Return the row of an evaluation of images of some sizes, by both sides."""
    config.evaluation_precision = precision
    if options.quick:
        sizes = [(h // 8, w // 8) for h, w in sizes]
    with data_set(sizes) as root:
        point_to(config, root)
        ours = build_ours(config, options.device).eval()
        stock = build_stock(config, ours).eval()
        agreement = _agreement(config, stock, ours, options.device)
        scores: dict[str, float] = {}
        sides = _both(config, stock, ours, options.device, scores)
        on_cpu = options.device == "cpu"
        short = copy.deepcopy(config)
        short.val_dataloader.dataset.indices = 1
        result = alternate(
            **sides,
            rounds=options.rounds,
            warmup=0 if on_cpu else 1,
            settle=_both(short, stock, ours, options.device, {}) if on_cpu else None,
        )
    row = {"what": name, "target": target, "agreement": agreement, **result, "images": len(sizes)}
    for side in sides:
        row[f"{side}_images_per_second"] = len(sizes) / result[side]
    # mmsegmentation's metric rounds to two decimals.
    difference = float(scores["stock"]) - round(float(scores["ours"]), 2)
    row["miou_difference"] = abs(round(difference, 4))
    return row


def _both(
    config: Config, stock: nn.Module, ours: nn.Module, device: str, scores: dict[str, float]
) -> dict[str, Callable[[], None]]:
    """Return the evaluations of both sides, which leave the mIoU in `scores`."""
    runs = {
        "stock": stock_evaluation(config, stock),
        "ours": our_evaluation(config, ours, device),
    }
    return {side: lambda s=side, run=run: scores.update({s: run()}) for side, run in runs.items()}


@contextmanager
def data_set(sizes: list[tuple[int, int]]) -> Iterator[Path]:
    """Write a validation set in the ADE20K layout: smooth JPEG images, annotations in patches."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        images, labels = (root / kind / "validation" for kind in ("images", "annotations"))
        images.mkdir(parents=True)
        labels.mkdir(parents=True)
        for i, (height, width) in enumerate(sizes):
            coarse = rng.integers(0, 256, (height // 24 + 2, width // 24 + 2, 3), np.uint8)
            image = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
            patches = rng.integers(0, 151, (height // 40 + 1, width // 40 + 1), np.uint8)
            label = cv2.resize(patches, (width, height), interpolation=cv2.INTER_NEAREST)
            cv2.imwrite(str(images / f"{i:08d}.jpg"), image)
            cv2.imwrite(str(labels / f"{i:08d}.png"), label)
        yield root


def stock_evaluation(config: Config, model: nn.Module) -> Callable[[], float]:
    """Return mmsegmentation's test loop on the config's validation set; it returns the mIoU."""
    dataset = DATASETS.build(config.val_dataloader.dataset)
    workers = _workers(config, next(model.parameters()).device)
    loader = DataLoader(
        dataset,
        batch_size=1,
        num_workers=workers,
        persistent_workers=workers > 0,
        collate_fn=pseudo_collate,
    )

    @torch.no_grad()
    def run() -> float:
        metric = IoUMetric(iou_metrics=["mIoU"])
        metric.dataset_meta = dataset.metainfo
        for batch in loader:
            batch = model.data_preprocessor(batch, training=False)
            samples = model.predict(batch["inputs"], batch["data_samples"])
            metric.process({}, [sample.to_dict() for sample in samples])
        return metric.evaluate(len(dataset))["mIoU"]

    return run


def _workers(config: Config, device: torch.device) -> int:
    """Return the loader processes of a run on this machine, which both sides get."""
    return default_workers(config.val_dataloader.get("num_workers", 0), None, device)


def our_evaluation(config: Config, model: nn.Module, device: str) -> Callable[[], float]:
    """Return our evaluation on the same set; it returns the mIoU."""
    tester = _tester(config, model, torch.device(device))
    return lambda: tester.test_loop.run()["mIoU"]


def _tester(config: Config, model: nn.Module, device: torch.device) -> ExactRunner:
    """Return a runner whose test loop is ready to run."""
    accelerated = copy.deepcopy(config)
    accelerate(accelerated)
    precision = accelerated.evaluation_precision
    workers = _workers(config, device)
    session = Session(device, 0, StopSignal(), workers=workers, evaluation_precision=precision)
    tester = build_tester(accelerated, session, model, Path(tempfile.mkdtemp()))
    tester.test()
    return tester


@torch.no_grad()
def _agreement(config: Config, stock: nn.Module, ours: nn.Module, device: str) -> str:
    """Compare the predictions of both sides, image by image."""
    precision = {"fp16": torch.float16}.get(config.evaluation_precision)
    dataset = DATASETS.build(config.val_dataloader.dataset)
    wrong_sure = wrong = pixels = 0
    for i in range(min(len(dataset), 3)):
        batch = stock.data_preprocessor(pseudo_collate([dataset[i]]), training=False)
        (sample,) = stock.predict(batch["inputs"], batch["data_samples"])
        expected = sample.pred_sem_seg.data[0]
        best = sample.seg_logits.data.topk(2, dim=0).values
        with torch.autocast(device, precision, enabled=precision is not None):
            (label,) = ours.predict_labels([batch["inputs"][0]], [tuple(expected.shape)])
        differs = label != expected
        wrong += int(differs.sum())
        wrong_sure += int((differs & (best[0] - best[1] > 1e-4)).sum())
        pixels += differs.numel()
    return f"{wrong_sure} of {pixels} pixels differ where margin > 1e-4, {wrong} in all"


@case("evaluation_scaling")
def scaling(options: Options) -> list[dict[str, Any]]:
    """Measure how n processes (or GPUs) share an evaluation; each has one core (or GPU)."""
    available = len(os.sched_getaffinity(0))
    if options.device == "cuda":
        available = torch.cuda.device_count()
    counts = [n for n in (1, 2, 4, 8) if n <= available]
    if len(counts) < 2:
        return []
    sizes = [(512, 683)] * SCALING_IMAGES
    with data_set(sizes) as root:
        seconds = {n: _several(n, root, options) for n in counts}
    return [
        {
            "what": f"{n} workers",
            "seconds": seconds[n],
            "images_per_second": len(sizes) / seconds[n],
            "speed_per_worker_against_one": seconds[1] / seconds[n] / n,
            "wanted": "≥ 0.9",
        }
        for n in counts
    ]


def _several(count: int, root: Path, options: Options) -> float:
    """Return the time that `count` processes take for the whole set, start-up not counted."""
    port = 29_500 + os.getpid() % 1000 + count
    processes = []
    for rank in range(count):
        environment = os.environ | {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(count),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": "1",
        }
        command = [
            sys.executable,
            "-W",
            "ignore",
            "-m",
            "benchmarks.evaluation",
            str(root),
            options.device,
        ]
        command += ["quick"] if options.quick else []
        processes.append(
            subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        )
    outputs = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        raise RuntimeError(f"a worker of {count} failed")
    return max(float(output.split()[-1]) for output in outputs)


def _worker(root: Path, device: str, quick: bool) -> None:
    """Evaluate an image, then this rank's share, and print the seconds of that."""
    from mmengine.dist import barrier

    from cae_seg.engine.ranks import joined

    torch.set_num_threads(1)
    config = load_config(TINY if quick else BASE)
    point_to(config, root)
    with joined(device) as own:
        model = build_ours(config, device).eval()
        tester = _tester(config, model, own)
        barrier()
        print(timed(tester.test_loop.run).clock)


if __name__ == "__main__":
    _worker(Path(sys.argv[1]), sys.argv[2], "quick" in sys.argv[3:])

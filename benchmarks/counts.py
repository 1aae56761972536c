"""Case: what a training step and an evaluation would do on a CUDA device, counted without one.

Runs in a process of its own (`python -m benchmarks.counts`), which is left unfit for real work on
a GPU: see `benchmarks.counting`.
"""

import copy
import json
import sys
import time
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from torch import nn

from benchmarks.counting import DEVICE, Counts, autocast, counting, pretended_cuda
from benchmarks.models import BASE, LARGE, build_empty, build_optimizer, load_config
from benchmarks.suite import Options, case, run
from cae_seg.models.layers.stochastic import set_randomness
from cae_seg.models.ops.resize import tile_shape
from cae_seg.models.ops.windows import WindowAxis, bands_of, resampling_matrix

STEPS = [("ViT-B", BASE, 2), ("ViT-B", BASE, 16), ("ViT-L", LARGE, 2), ("ViT-L", LARGE, 16)]
IMAGE = (512, 683)
SIZES = 150


@case("counts")
def counts(options: Options) -> list[dict[str, Any]]:
    """Count both sides in a process of their own."""
    if options.device != "cpu":
        return []
    quick = ["quick"] if options.quick else []
    printed = run([sys.executable, "-W", "ignore", "-m", "benchmarks.counts", *quick])
    return json.loads(printed.splitlines()[-1])


def count_all(*, quick: bool) -> list[dict[str, Any]]:
    """Return a row for each piece of work; with `quick` only those of ViT-B at batch 2."""
    rows = []
    for name, stem, images in STEPS[:1] if quick else STEPS:
        config = load_config(stem)
        both = {side: count_step(config, images, side) for side in ("stock", "ours")}
        rows.append(_row(f"{name}, training step, batch {images}, fp16", both))
    for name, stem in [("ViT-B", BASE)] if quick else [("ViT-B", BASE), ("ViT-L", LARGE)]:
        config = load_config(stem)
        both = {side: count_evaluation(config, side) for side in ("stock", "ours")}
        rows.append(_row(f"{name}, evaluation of one image of {IMAGE[0]} × {IMAGE[1]}, fp32", both))
    rows.append({"what": "masks of an iteration, ViT-B", **_host_milliseconds(load_config(BASE))})
    rows.append({"what": f"matrices of an image, {SIZES} sizes", **count_sizes()})
    return rows


def count_step(config: Config, images: int, side: str) -> Counts:
    """Count the second step of training, from a uint8 batch in pinned memory to new weights."""
    model = build_empty(config, side).train()
    with pretended_cuda():
        model.to_empty(device=DEVICE)
        model.data_preprocessor.to(DEVICE)
        optimizer = build_optimizer(config, model, "cuda", stock=side == "stock")
        for _ in range(2):  # the first one allocates moments and constants
            batch = _batch(config, images, side)
            with counting() as found:
                set_randomness(
                    model, seed=0, iteration=0, first_sample=0, samples=images, total=images
                )
                data = model.data_preprocessor(batch, training=True)
                with autocast(torch.float16):
                    losses = model.loss(**data)
                optimizer.update_params(model.parse_losses(losses)[0])
    return found


def count_evaluation(config: Config, side: str) -> Counts:
    """Count the prediction of one normalised image by sliding windows."""
    model = build_empty(config, side).eval()
    height, width = IMAGE
    with pretended_cuda(), torch.no_grad():
        model.to_empty(device=DEVICE)
        for _ in range(2):
            image = torch.empty(1, 3, height, width, device=DEVICE)
            with counting() as found:
                if side == "ours":
                    model.predict_labels([image[0]], [IMAGE])
                else:
                    meta = {"ori_shape": IMAGE, "img_shape": IMAGE, "pad_shape": IMAGE}
                    model.predict(image, [SegDataSample(metainfo=meta)])
    return found


def count_sizes() -> dict[str, float]:
    """Return what the matrices that join windows cost where each image has a size of its own.

    Returns:
        The median processor time of an image, and what is kept after all of them.
    """
    draw = np.random.default_rng(0)
    config = load_config(BASE).model
    crop, stride = config.test_cfg.crop_size[0], config.test_cfg.stride[0]
    coarse, classes = crop // 4, config.decode_head.num_classes
    times = []
    for _ in range(SIZES):
        size = tuple(int(side) for side in draw.integers(256, 1400, 2))
        scale = min(2048 / max(size), crop / min(size))  # as the test pipeline resizes
        axes = [WindowAxis(round(side * scale), crop, stride) for side in size]
        logits = torch.empty(len(axes[0].starts) * coarse, 1, classes, device="meta")
        begin = time.process_time()
        for axis, side, tile in zip(axes, size, tile_shape(logits[None], size), strict=True):
            bands_of(resampling_matrix(axis, coarse, side, False), tile)
        times.append(time.process_time() - begin)
    return {
        "host_milliseconds": 1e3 * float(np.median(times)),
        "kept_megabytes": resampling_matrix.cache.bytes / 1e6,
    }


def _batch(config: Config, images: int, side: str) -> dict[str, Any]:
    """Return a batch as the loader hands it over: stock's is a list, with labels of 64 bits."""
    height, width = config.crop_size
    inputs = torch.empty(images, 3, height, width, dtype=torch.uint8)
    labels = torch.empty(
        images, 1, height, width, dtype=torch.int64 if side == "stock" else torch.uint8
    )
    samples = [SegDataSample(gt_sem_seg=PixelData(data=label)) for label in labels]
    return {"inputs": list(inputs), "data_samples": samples}


def _row(what: str, both: dict[str, Counts]) -> dict[str, Any]:
    row: dict[str, Any] = {"what": what}
    for side, found in both.items():
        row[f"{side}_kernels"] = found.kernels
        row[f"{side}_gigabytes"] = found.bytes / 1e9
        row[f"{side}_tflop"] = found.flops / 1e12
        row[f"{side}_blocking_copies"] = found.blocking_copies
        row[f"{side}_waits"] = found.waits
        row[f"{side}_peak_gb"] = found.peak_bytes / 1e9
    return row


def _host_milliseconds(config: Config) -> dict[str, float]:
    """Return the processor time of drawing the masks of 16 images, the least of several."""
    model = build_empty(config, "ours")
    heads = nn.ModuleList([nn.Linear(1, 1, device="cpu")])  # what tells where the masks belong
    holder = nn.ModuleList([heads, copy.copy(model)])
    times = []
    for iteration in range(20):
        begin = time.process_time()
        set_randomness(holder, seed=0, iteration=iteration, first_sample=0, samples=16, total=16)
        times.append(time.process_time() - begin)
    return {"host_milliseconds": 1e3 * float(np.min(times))}


if __name__ == "__main__":
    print(json.dumps(count_all(quick="quick" in sys.argv[1:])))

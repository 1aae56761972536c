"""A data set of a few small pictures and a model of a few thousand parameters."""

from pathlib import Path

import numpy as np
from PIL import Image

from cae_seg.engine.job import TrainJob

CONFIGS = Path(__file__).parents[1] / "configs_local" / "cae" / "upernet"
TINY = f"""
_base_ = "{CONFIGS / "upernet_cae_tiny_demo.py"}"
crop_size = (32, 32)
image_scale = (128, 32)
model = dict(
    data_preprocessor=dict(size=crop_size),
    backbone=dict(img_size=32, embed_dim=16, num_heads=2, drop_path_rate=0.3),
    decode_head=dict(in_channels=[16] * 4, channels=8),
    auxiliary_head=dict(in_channels=16, channels=8),
    test_cfg=dict(crop_size=crop_size, stride=(21, 21)),
)
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", reduce_zero_label=True),
    dict(type="RandomResize", scale=image_scale, ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type="RandomCrop", crop_size=crop_size, cat_max_ratio=0.75),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PhotoMetricDistortion"),
    dict(type="PackSegInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=image_scale, keep_ratio=True),
    dict(type="LoadAnnotations", reduce_zero_label=True),
    dict(type="PackSegInputs"),
]
tta_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(
        type="TestTimeAug",
        transforms=[
            [dict(type="Resize", scale=s, keep_ratio=True) for s in ((64, 16), (128, 32))],
            [dict(type="RandomFlip", prob=p, direction="horizontal") for p in (0.0, 1.0)],
            [dict(type="LoadAnnotations", reduce_zero_label=True)],
            [dict(type="PackSegInputs")],
        ],
    ),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
default_hooks = dict(checkpoint=dict(interval=3), logger=dict(interval=1))
train_cfg = dict(val_interval=5)
"""


def draw_pictures(source: Path) -> None:
    """Write 20 training and 5 validation pictures of coloured stripes in ADE20K's layout."""
    rng = np.random.default_rng(0)
    for split, count in (("training", 20), ("validation", 5)):
        images, labels = source / "images" / split, source / "annotations" / split
        images.mkdir(parents=True)
        labels.mkdir(parents=True)
        for number in range(count):
            label = np.repeat(rng.integers(0, 6, 8), 8)[None].repeat(40, 0).astype(np.uint8)
            image = (label[..., None] * [40, 25, 10] + rng.integers(0, 30, (40, 64, 3))) % 256
            Image.fromarray(image.astype(np.uint8)).save(images / f"{split}_{number}.jpg")
            Image.fromarray(label).save(labels / f"{split}_{number}.png")
    (source / "objectInfo150.txt").write_text(
        "Idx\tRatio\tTrain\tVal\tStuff\tName\n"
        + "".join(f"{n}\t0\t0\t0\t0\tclass {n}\n" for n in range(1, 151))
    )
    (source / "sceneCategories.txt").write_text("")


def job_in(folder: Path, config: Path, manifest: Path, iterations: int = 8, **changes) -> TrainJob:
    """Return a training job of a few iterations that keeps everything in `folder`."""
    values = {
        "config": config,
        "work_dir": folder / "work",
        "out": folder / "run.json",
        "data": manifest,
        "device": "cpu",
        "lock_wait": 0.0,
        "iterations": iterations,
        **changes,
    }
    return TrainJob(**values)

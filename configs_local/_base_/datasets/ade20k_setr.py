"""ADE20K with SETR's multi-scale test."""

_base_ = ["./ade20k.py"]

# Published: ratios 0.5, 0.75 and 1.0, each with a flip, and no short side under the crop's 512
# (fudan-zvg/SETR, configs/_base_/datasets/ade20k_multi_scale.py). So the three scales are equal,
# and one with its flip gives the same mean. At ratio 1.0 SETR's own `Resize` takes the first number
# of (2048, 512) for the short side; BEiT's and mmsegmentation's copies of the rule take the
# smaller, as here.
tta_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(
        type="TestTimeAug",
        transforms=[
            [dict(type="Resize", scale=(2048, 512), keep_ratio=True)],
            [
                dict(type="RandomFlip", prob=0.0, direction="horizontal"),
                dict(type="RandomFlip", prob=1.0, direction="horizontal"),
            ],
            [dict(type="LoadAnnotations", reduce_zero_label=True)],
            [dict(type="PackSegInputs")],
        ],
    ),
]

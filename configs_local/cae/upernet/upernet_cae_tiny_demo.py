"""A CAE of 4 narrow blocks at 96 × 96 for the demo: a minute on two CPU cores, same recipe."""

_base_ = [
    "../../_base_/models/upernet_cae.py",
    "../../_base_/datasets/ade20k.py",
    "../../_base_/schedules/schedule_160k.py",
    "../../_base_/default_runtime.py",
]

crop_size = (96, 96)
image_scale = (384, 96)
max_iterations = 300
warmup_iterations = 20

model = dict(
    data_preprocessor=dict(size=crop_size),
    backbone=dict(
        img_size=96,
        embed_dim=64,
        depth=4,
        num_heads=4,
        drop_path_rate=0.05,
        out_indices=[0, 1, 2, 3],
    ),
    decode_head=dict(in_channels=[64, 64, 64, 64], channels=32),
    auxiliary_head=dict(in_channels=64, channels=32),
    test_cfg=dict(crop_size=crop_size, stride=(64, 64)),
)
optim_wrapper = dict(optimizer=dict(lr=1e-3))
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-6, begin=0, end=warmup_iterations + 1, by_epoch=False),
    dict(type="PolyLR", power=1.0, eta_min=0.0, begin=0, end=max_iterations + 1, by_epoch=False),
]
train_cfg = dict(max_iters=max_iterations, val_interval=150)
default_hooks = dict(checkpoint=dict(interval=100), logger=dict(interval=10))

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
            [
                dict(type="Resize", scale=scale, keep_ratio=True)
                for scale in ((192, 48), (288, 72), (384, 96), (480, 120), (576, 144), (672, 168))
            ],
            [
                dict(type="RandomFlip", prob=0.0, direction="horizontal"),
                dict(type="RandomFlip", prob=1.0, direction="horizontal"),
            ],
            [dict(type="LoadAnnotations", reduce_zero_label=True)],
            [dict(type="PackSegInputs")],
        ],
    ),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

"""ADE20K (ADEChallengeData2016): 150 classes, 20 210 training and 2 000 validation images."""

data_root = "data/ade20k/ADEChallengeData2016"
image_scale = (2048, 512)  # long and short side at most, in pixels
crop_size = (512, 512)

train_pipeline = [
    dict(
        type="TrainTransform",
        scale=image_scale,
        ratio_range=(0.5, 2.0),
        crop_size=crop_size,
        cat_max_ratio=0.75,
        flip_prob=0.5,
    ),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=image_scale, keep_ratio=True),
    # After the resize: predictions are compared at the original size.
    dict(type="LoadAnnotations", reduce_zero_label=True),
    dict(type="PackSegInputs"),
]
tta_ratios = (
    0.5,
    0.75,
    1.0,
    1.25,
    1.5,
    1.75,
)  # scales of test-time augmentation, each also flipped

train_dataloader = dict(
    batch_size=2,  # total_batch_size over the GPUs, set when a run starts
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="IterationSampler"),
    dataset=dict(
        type="SeededDataset",
        dataset=dict(
            type="ADE20KDataset",
            data_root=data_root,
            data_prefix=dict(img_path="images/training", seg_map_path="annotations/training"),
            pipeline=train_pipeline,
        ),
    ),
)
val_dataloader = dict(
    num_workers=4,
    dataset=dict(
        type="ADE20KDataset",
        data_root=data_root,
        data_prefix=dict(img_path="images/validation", seg_map_path="annotations/validation"),
        pipeline=test_pipeline,
    ),
)

"""Linear probe of DINOv2 ViT-S/14, 40 000 iterations: the last four blocks, normalised."""

_base_ = [
    "../_base_/models/linear_timm.py",
    "../_base_/datasets/ade20k.py",
    "../_base_/schedules/adamw_1e-3_40k.py",
    "../_base_/default_runtime.py",
]

model = dict(
    backbone=dict(
        backbone=dict(model_name="vit_small_patch14_dinov2.lvd142m", out_indices=[8, 9, 10, 11]),
    ),
    decode_head=dict(in_channels=[384, 384, 384, 384], in_index=[0, 1, 2, 3]),
)

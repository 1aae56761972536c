"""Linear probe of DINOv3 ViT-S/16, 40 000 iterations: the last block, normalised."""

_base_ = [
    "../_base_/models/linear_timm.py",
    "../_base_/datasets/ade20k.py",
    "../_base_/schedules/adamw_1e-3_40k.py",
    "../_base_/default_runtime.py",
]

optim_wrapper = dict(optimizer=dict(weight_decay=1e-3))

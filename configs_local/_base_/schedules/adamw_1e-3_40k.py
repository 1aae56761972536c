"""40 000 iterations of AdamW at 1e-3 for linear probes: poly decay times a linear warm-up.

As in the configs that DINOv2 published with its heads (dinov2_vitb14_ade20k_linear_config.py):
weight decay 1e-4, warm-up over 1 500 iterations from 1e-6, power 1.
"""

_base_ = ["./schedule_160k.py"]

max_iterations = 40_000

optim_wrapper = dict(
    _delete_=True,
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=1e-3, betas=(0.9, 0.999), weight_decay=1e-4),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-6, begin=0, end=1_501, by_epoch=False),
    dict(type="PolyLR", power=1.0, eta_min=0.0, begin=0, end=max_iterations + 1, by_epoch=False),
]
train_cfg = dict(max_iters=max_iterations, val_interval=8_000)

"""DeiT-B + UperNet, 160 000 iterations; start from deit_base_patch16_224-b5f2ef4d.pth."""

_base_ = [
    "../_base_/models/upernet_deit.py",
    "../_base_/datasets/ade20k.py",
    "../_base_/schedules/adamw_6e-5_160k.py",
    "../_base_/default_runtime.py",
]

precision = "fp32"  # as published

# The key `norm` matches nothing: the norms are called `ln1` and `ln2`, and are decayed.
optim_wrapper = dict(
    paramwise_cfg=dict(
        custom_keys=dict(
            _delete_=True,
            pos_embed=dict(decay_mult=0.0),
            cls_token=dict(decay_mult=0.0),
        )
    )
)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-6, begin=0, end=1_500, by_epoch=False),
    dict(type="PolyLR", power=1.0, eta_min=0.0, begin=1_500, end=160_000, by_epoch=False),
]

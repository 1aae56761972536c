"""A Swin of five narrow blocks at 96 × 96 for the demo: half a minute on two CPU cores."""

_base_ = ["../cae/upernet/upernet_cae_tiny_demo.py"]

max_iterations = 150

model = dict(
    backbone=dict(
        _delete_=True,
        type="SwinBackbone",
        embed_dims=32,
        depths=[1, 1, 2, 1],
        num_heads=[1, 2, 4, 8],
        window_size=4,
        mlp_ratio=4,
        drop_path_rate=0.05,
    ),
    decode_head=dict(in_channels=[32, 64, 128, 256]),
    auxiliary_head=dict(in_channels=128),
    test_cfg=dict(_delete_=True, mode="whole"),
)
optim_wrapper = dict(
    _delete_=True,
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=1e-3, betas=(0.9, 0.999), weight_decay=0.01),
    paramwise_cfg=dict(
        custom_keys=dict(
            relative_position_bias_table=dict(decay_mult=0.0),
            norm=dict(decay_mult=0.0),
        )
    ),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-6, begin=0, end=21, by_epoch=False),
    dict(type="PolyLR", power=1.0, eta_min=0.0, begin=0, end=max_iterations + 1, by_epoch=False),
]
train_cfg = dict(max_iters=max_iterations)

"""ViT-L, layer decay 0.95, drop path 0.15; the learning rate comes from the experiment sheet."""

_base_ = [
    "../../_base_/models/upernet_cae.py",
    "../../_base_/datasets/ade20k.py",
    "../../_base_/schedules/schedule_160k.py",
    "../../_base_/default_runtime.py",
]

model = dict(
    backbone=dict(
        embed_dim=1024,
        depth=24,
        num_heads=16,
        init_values=1e-5,
        drop_path_rate=0.15,
        out_indices=[7, 11, 15, 23],
    ),
    decode_head=dict(in_channels=[1024, 1024, 1024, 1024], channels=1024),
    auxiliary_head=dict(in_channels=1024),
)
optim_wrapper = dict(paramwise_cfg=dict(layer_decay_rate=0.95))
default_hooks = dict(checkpoint=dict(interval=32_000))

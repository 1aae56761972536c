"""ViT-B, learning rate 4e-4."""

_base_ = [
    "../../_base_/models/upernet_cae.py",
    "../../_base_/datasets/ade20k.py",
    "../../_base_/schedules/schedule_160k.py",
    "../../_base_/default_runtime.py",
]

optim_wrapper = dict(optimizer=dict(lr=4e-4))

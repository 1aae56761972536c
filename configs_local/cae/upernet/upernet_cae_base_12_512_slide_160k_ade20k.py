"""ViT-B; the learning rate comes from the experiment sheet or the command line."""

_base_ = [
    "../../_base_/models/upernet_cae.py",
    "../../_base_/datasets/ade20k.py",
    "../../_base_/schedules/schedule_160k.py",
    "../../_base_/default_runtime.py",
]

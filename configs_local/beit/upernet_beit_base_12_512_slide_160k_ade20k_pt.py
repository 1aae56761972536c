"""BEiT-B, self-supervised, + UperNet at 512; start from beit_base_patch16_224_pt22k.pth."""

_base_ = [
    "../_base_/models/upernet_beit.py",
    "../_base_/datasets/ade20k.py",
    "../_base_/schedules/schedule_160k.py",
    "../_base_/default_runtime.py",
]

optim_wrapper = dict(optimizer=dict(lr=7e-4))

"""MAE-B + UperNet; start from mae_pretrain_vit_base.pth.

Absolute positions of the checkpoint and fresh relative tables together, as published."""

_base_ = [
    "../_base_/models/upernet_beit.py",
    "../_base_/datasets/ade20k.py",
    "../_base_/schedules/schedule_160k.py",
    "../_base_/default_runtime.py",
]

model = dict(backbone=dict(use_abs_pos_emb=True, init_values=1.0))
optim_wrapper = dict(optimizer=dict(lr=1e-4))

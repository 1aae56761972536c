"""SETR-Naive, ViT-L/16, 160 000 iterations; start from jx_vit_large_p16_384."""

_base_ = [
    "../_base_/models/setr_up.py",
    "../_base_/datasets/ade20k_setr.py",
    "../_base_/schedules/sgd_160k.py",
    "../_base_/default_runtime.py",
]

precision = "fp32"  # as published
optim_wrapper = dict(optimizer=dict(lr=1e-2))

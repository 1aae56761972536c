"""Swin-T + UperNet, 160 000 iterations; start from swin_tiny_patch4_window7_224.pth."""

_base_ = [
    "../_base_/models/upernet_swin.py",
    "../_base_/datasets/ade20k.py",
    "../_base_/schedules/adamw_6e-5_160k.py",
    "../_base_/default_runtime.py",
]

precision = "fp32"  # as published

"""Swin-S + UperNet, 160 000 iterations; start from swin_small_patch4_window7_224.pth."""

_base_ = ["./upernet_swin_tiny_patch4_window7_512x512_160k_ade20k.py"]

model = dict(backbone=dict(depths=[2, 2, 18, 2]))

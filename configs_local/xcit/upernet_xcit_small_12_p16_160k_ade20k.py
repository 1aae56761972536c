"""XCiT-S12/16 + UperNet, 160 000 iterations; start from xcit_small_12_p16_384_dist.pth."""

_base_ = [
    "../_base_/models/upernet_xcit.py",
    "../_base_/datasets/ade20k.py",
    "../_base_/schedules/adamw_6e-5_160k.py",
    "../_base_/default_runtime.py",
]

precision = "fp32"  # as published

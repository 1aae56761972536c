"""XCiT-M24/8 + UperNet, 160 000 iterations; start from xcit_medium_24_p8_384_dist.pth."""

_base_ = ["./upernet_xcit_medium_24_p16_160k_ade20k.py"]

model = dict(
    backbone=dict(model_name="xcit_medium_24_p8_224"),
    neck=dict(rescales=[2, 1, 0.5, 0.25]),
)

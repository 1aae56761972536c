"""XCiT-S24/16 + UperNet, 160 000 iterations; start from xcit_small_24_p16_384_dist.pth."""

_base_ = ["./upernet_xcit_small_12_p16_160k_ade20k.py"]

model = dict(
    backbone=dict(
        model_name="xcit_small_24_p16_224", drop_path_rate=0.1, out_indices=[7, 11, 15, 23]
    )
)

"""XCiT-M24/16 + UperNet, 160 000 iterations; start from xcit_medium_24_p16_384_dist.pth."""

_base_ = ["./upernet_xcit_small_12_p16_160k_ade20k.py"]

model = dict(
    backbone=dict(
        model_name="xcit_medium_24_p16_224", drop_path_rate=0.15, out_indices=[7, 11, 15, 23]
    ),
    neck=dict(embed_dim=512),
    decode_head=dict(in_channels=[512, 512, 512, 512]),
    auxiliary_head=dict(in_channels=512),
)

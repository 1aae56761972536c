"""UperNet over Swin-T: four stages, a LayerNorm on each, whole images in tests."""

_base_ = ["./upernet_cae.py"]

model = dict(
    backbone=dict(
        _delete_=True,
        type="SwinBackbone",
        embed_dims=96,
        depths=[2, 2, 6, 2],
        num_heads=[3, 6, 12, 24],
        window_size=7,
        mlp_ratio=4,
        drop_path_rate=0.3,
    ),
    decode_head=dict(in_channels=[96, 192, 384, 768], channels=512),
    auxiliary_head=dict(in_channels=384),
    test_cfg=dict(_delete_=True, mode="whole"),
)

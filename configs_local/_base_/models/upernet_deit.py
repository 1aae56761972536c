"""UperNet over DeiT-B: four maps of stride 16 without a pyramid, whole images in tests."""

_base_ = ["./upernet_cae.py"]

model = dict(
    backbone=dict(
        _delete_=True,
        type="ViTBackbone",
        img_size=(512, 512),
        embed_dims=768,
        num_layers=12,
        num_heads=12,
        norm_cfg=dict(type="LN", eps=1e-6),
        drop_path_rate=0.1,
        out_indices=[2, 5, 8, 11],
    ),
    decode_head=dict(in_channels=[768, 768, 768, 768], channels=512),
    auxiliary_head=dict(in_index=3),
    test_cfg=dict(_delete_=True, mode="whole"),
)

"""SETR-MLA over ViT-L: four blocks without a class token, added from the deepest to the first."""

_base_ = ["./upernet_cae.py"]

model = dict(
    backbone=dict(
        _delete_=True,
        type="ViTBackbone",
        img_size=(512, 512),
        embed_dims=1024,
        num_layers=24,
        num_heads=16,
        norm_cfg=dict(type="LN", eps=1e-6),
        interpolate_mode="bilinear",  # of the position embedding
        with_cls_token=False,
        out_indices=[5, 11, 17, 23],
    ),
    neck=dict(
        type="MLANeck",
        in_channels=[1024, 1024, 1024, 1024],
        out_channels=256,
        norm_cfg=_base_.norm_cfg,
        act_cfg=dict(type="ReLU"),
    ),
    decode_head=dict(
        _delete_=True,
        type="MLAHead",
        in_channels=[256, 256, 256, 256],
        in_index=[3, 2, 1, 0],  # the neck returns the deepest map first
        channels=512,
        mla_channels=128,
        dropout_ratio=0,
        num_classes=150,
        norm_cfg=_base_.norm_cfg,
        loss_decode=dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=1.0),
    ),
    auxiliary_head=[
        dict(
            type="MLAAuxiliaryHead",
            in_channels=256,
            in_index=3 - level,
            num_classes=150,
            loss_decode=dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=0.4),
        )
        for level in range(4)
    ],
)

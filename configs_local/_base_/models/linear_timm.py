"""A linear probe: batch norm and 1×1 convolution on the last block of a frozen timm model."""

_base_ = ["./upernet_cae.py"]

model = dict(
    backbone=dict(
        _delete_=True,
        type="Frozen",
        backbone=dict(
            type="TimmModel",
            model_name="vit_small_patch16_dinov3.lvd1689m",
            img_size=512,
            out_indices=[11],
        ),
    ),
    decode_head=dict(
        _delete_=True,
        type="LinearHead",
        in_channels=384,
        in_index=0,
        num_classes=150,
        norm_cfg=_base_.norm_cfg,
        align_corners=False,
        loss_decode=dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=1.0),
    ),
    auxiliary_head=None,
)

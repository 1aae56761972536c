"""SETR-Naive over ViT-L: a 1×1 convolution on the last block, and on three others in training.

Every head normalises its tokens itself. As published, the logits stay at stride 16 and are resized
to the crop once.
"""

_base_ = ["./upernet_cae.py"]

head = dict(
    type="SETRUPHead",
    in_channels=1024,
    in_index=3,
    channels=256,
    num_convs=1,
    up_scale=1,
    kernel_size=1,
    dropout_ratio=0,
    num_classes=150,
    norm_cfg=_base_.norm_cfg,
    align_corners=False,
    loss_decode=dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=1.0),
)
auxiliary = dict(
    head,
    loss_decode=dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=0.4),
)

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
        out_indices=[9, 14, 19, 23],
    ),
    decode_head=dict(_delete_=True, **head),
    auxiliary_head=[
        dict(auxiliary, in_index=0),
        dict(auxiliary, in_index=1),
        dict(auxiliary, in_index=2),
    ],
)
del head, auxiliary

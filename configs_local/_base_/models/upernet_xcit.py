"""UperNet over XCiT-S12/16: a pyramid over four blocks, no norm on them, whole images in tests."""

_base_ = ["./upernet_cae.py"]

model = dict(
    backbone=dict(
        _delete_=True,
        type="TimmModel",
        model_name="xcit_small_12_p16_224",
        img_size=512,
        norm=False,
        drop_path_rate=0.05,  # the same in every block
        out_indices=[3, 5, 7, 11],
    ),
    neck=dict(
        type="Feature2Pyramid",
        embed_dim=384,
        rescales=[4, 2, 1, 0.5],
        norm_cfg=_base_.norm_cfg,
    ),
    decode_head=dict(in_channels=[384, 384, 384, 384], channels=512),
    auxiliary_head=dict(in_channels=384),
    test_cfg=dict(_delete_=True, mode="whole"),
)

"""Linear probe of DINOv2 ViT-B/14, 40 000 iterations: the last four blocks, normalised."""

_base_ = ["./linear_dinov2_small_14_512_slide_40k_ade20k.py"]

model = dict(
    backbone=dict(
        backbone=dict(model_name="vit_base_patch14_dinov2.lvd142m", out_indices=[8, 9, 10, 11]),
    ),
    decode_head=dict(in_channels=[768, 768, 768, 768]),
)

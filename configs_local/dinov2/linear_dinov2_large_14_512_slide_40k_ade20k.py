"""Linear probe of DINOv2 ViT-L/14, 40 000 iterations: the last four blocks, normalised."""

_base_ = ["./linear_dinov2_small_14_512_slide_40k_ade20k.py"]

model = dict(
    backbone=dict(
        backbone=dict(model_name="vit_large_patch14_dinov2.lvd142m", out_indices=[20, 21, 22, 23]),
    ),
    decode_head=dict(in_channels=[1024, 1024, 1024, 1024]),
)

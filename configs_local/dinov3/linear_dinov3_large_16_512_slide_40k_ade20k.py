"""Linear probe of DINOv3 ViT-L/16, 40 000 iterations: the last block, normalised."""

_base_ = ["./linear_dinov3_small_16_512_slide_40k_ade20k.py"]

model = dict(
    backbone=dict(
        backbone=dict(model_name="vit_large_patch16_dinov3.lvd1689m", out_indices=[23]),
    ),
    decode_head=dict(in_channels=1024),
)

"""Linear probe of DINOv3 ViT-S/16, 40 000 iterations: the last block, normalised."""

_base_ = [
    "../_base_/models/linear_timm.py",
    "../_base_/datasets/ade20k.py",
    "../_base_/schedules/adamw_1e-3_40k.py",
    "../_base_/default_runtime.py",
]

# Rate, betas, clipping, dropout, batch, crop and stride: dinov3/eval/segmentation/config.py of
# facebookresearch/dinov3. Weight decay and warm-up, then a cosine to zero: as CanViT quotes them
# from that code's config for ADE20K (config-ade20k-linear-training.yaml).
model = dict(decode_head=dict(dropout_ratio=0.1))
optim_wrapper = dict(optimizer=dict(weight_decay=1e-3), clip_grad=dict(max_norm=35.0))
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-6, begin=0, end=1_501, by_epoch=False),
    dict(type="CosineAnnealingLR", eta_min=0.0, begin=1_500, end=40_001, by_epoch=False),
]

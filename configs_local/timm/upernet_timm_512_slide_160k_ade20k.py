"""UperNet over a timm model, 160 000 iterations; the sheet's key `timm` replaces the backbone."""

_base_ = [
    "../_base_/models/upernet_cae.py",
    "../_base_/datasets/ade20k.py",
    "../_base_/schedules/schedule_160k.py",
    "../_base_/default_runtime.py",
]

model = dict(timm="vit_base_patch16_dinov3.lvd1689m", head="upernet")

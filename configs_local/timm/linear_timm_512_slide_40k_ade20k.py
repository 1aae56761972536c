"""Linear probe of a frozen timm model, 40 000 iterations; the sheet's key `timm` names another."""

_base_ = [
    "../_base_/models/upernet_cae.py",
    "../_base_/datasets/ade20k.py",
    "../_base_/schedules/adamw_1e-3_40k.py",
    "../_base_/default_runtime.py",
]

model = dict(timm="vit_base_patch16_dinov3.lvd1689m", head="linear", frozen=True)

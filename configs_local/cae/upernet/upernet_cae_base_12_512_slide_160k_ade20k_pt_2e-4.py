"""ViT-B, learning rate 2e-4."""

_base_ = ["./upernet_cae_base_12_512_slide_160k_ade20k.py"]

optim_wrapper = dict(optimizer=dict(lr=2e-4))

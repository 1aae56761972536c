"""ViT-L, layer decay 0.95, learning rate 4e-5, drop path 0.15."""

_base_ = ["./upernet_cae_large_24_512_slide_160k_ade20k.py"]

optim_wrapper = dict(optimizer=dict(lr=4e-5))

"""CAE v2, ViT-L: the recipe of CAE; start from its checkpoint."""

_base_ = ["./upernet_cae_large_24_512_slide_160k_ade20k_pt_decay095_4e-5_dp015.py"]

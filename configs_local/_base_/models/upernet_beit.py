"""UperNet over BEiT-B: the class of CAE without fixed positions; relative tables in every block."""

_base_ = ["./upernet_cae.py"]

model = dict(backbone=dict(use_sincos_pos_embed=False))

"""SETR-PUP, ViT-L/16, 160 000 iterations; start from jx_vit_large_p16_384."""

_base_ = [
    "../_base_/models/setr_up.py",
    "../_base_/datasets/ade20k_setr.py",
    "../_base_/schedules/sgd_160k.py",
    "../_base_/default_runtime.py",
]

precision = "fp32"  # as published
auxiliary = dict(_base_.model.auxiliary_head[0], kernel_size=3, up_scale=4)

model = dict(
    decode_head=dict(num_convs=4, up_scale=2, kernel_size=3),
    auxiliary_head=[
        dict(auxiliary, in_index=0),
        dict(auxiliary, in_index=1),
        dict(auxiliary, in_index=2),
        dict(auxiliary, in_index=3),
    ],
)
del auxiliary

"""160 000 iterations of SGD, SETR's: poly decay to 1e-4, no warm-up, 10 × the rate in heads."""

_base_ = ["./schedule_160k.py"]

optim_wrapper = dict(
    _delete_=True,
    type="OptimWrapper",
    optimizer=dict(type="SGD", lr=1e-3, momentum=0.9, weight_decay=0.0),
    paramwise_cfg=dict(custom_keys=dict(head=dict(lr_mult=10.0))),
)
# The floor is the same for all groups. mmengine reaches a scheduler's last value at `end - 1`.
param_scheduler = [
    dict(type="PolyLR", power=0.9, eta_min=1e-4, begin=0, end=160_001, by_epoch=False),
]

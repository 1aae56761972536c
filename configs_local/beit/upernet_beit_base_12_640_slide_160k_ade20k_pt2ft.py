"""BEiT-B + UperNet at 640; start from beit_base_patch16_224_pt22k_ft22k.pth."""

_base_ = [
    "../_base_/models/upernet_beit.py",
    "../_base_/datasets/ade20k_640x640.py",
    "../_base_/schedules/schedule_160k.py",
    "../_base_/default_runtime.py",
]

model = dict(
    data_preprocessor=dict(size=(640, 640)),
    backbone=dict(img_size=640),
    test_cfg=dict(crop_size=(640, 640), stride=(426, 426)),
)
optim_wrapper = dict(
    optimizer=dict(lr=3e-5),
    paramwise_cfg=dict(layer_decay_rate=0.9),
)

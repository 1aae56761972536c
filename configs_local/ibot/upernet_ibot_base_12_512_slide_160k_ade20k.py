"""iBOT-B + UperNet; start from the teacher's checkpoint.

The final norm is applied to every tap, and the rate is that of the published number."""

_base_ = [
    "../_base_/models/upernet_beit.py",
    "../_base_/datasets/ade20k.py",
    "../_base_/schedules/schedule_160k.py",
    "../_base_/default_runtime.py",
]

model = dict(
    backbone=dict(
        use_abs_pos_emb=True,
        use_rel_pos_bias=False,
        init_values=None,
        out_with_norm=True,
    )
)
optim_wrapper = dict(optimizer=dict(lr=8e-5))

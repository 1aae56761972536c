"""160 000 iterations of AdamW at 6e-5: one rate for all layers, no weight decay of norms.

The names are those of the published recipes of Swin and XCiT: `norm` is part of the names of the
blocks' norms, while batch norms and biases are decayed.
"""

_base_ = ["./schedule_160k.py"]

optim_wrapper = dict(
    _delete_=True,
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=6e-5, betas=(0.9, 0.999), weight_decay=0.01),
    paramwise_cfg=dict(
        custom_keys=dict(
            absolute_pos_embed=dict(decay_mult=0.0),
            relative_position_bias_table=dict(decay_mult=0.0),
            norm=dict(decay_mult=0.0),
        )
    ),
)

"""160 000 iterations of AdamW: poly decay to zero times a linear warm-up."""

max_iterations = 160_000
warmup_iterations = 1_500
total_batch_size = 16  # images an iteration, whatever the number of GPUs

optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(
        type="AdamW",
        lr=1e-4,
        betas=(0.9, 0.999),
        weight_decay=0.05,
        fused=True,  # one pass over weights, gradients and moments: the same update, 6 × faster
    ),
    constructor="CAELayerDecay",
    paramwise_cfg=dict(layer_decay_rate=0.65),
)

# Both begin at 0 and multiply, as published: at the end of the warm-up the decay has begun.
# mmengine reaches a scheduler's last value at `end - 1`.
param_scheduler = [
    dict(
        type="LinearLR",
        start_factor=1e-6,
        begin=0,
        end=warmup_iterations + 1,
        by_epoch=False,
    ),
    dict(type="PolyLR", power=1.0, eta_min=0.0, begin=0, end=max_iterations + 1, by_epoch=False),
]

train_cfg = dict(max_iters=max_iterations, val_interval=16_000)
default_hooks = dict(checkpoint=dict(interval=8_000), logger=dict(interval=50))

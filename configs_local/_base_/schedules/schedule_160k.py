"""160 000 iterations of AdamW: poly decay to zero times a linear warm-up."""

max_iterations = 160_000
warmup_iterations = 1_500

optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    constructor="CAELayerDecay",
    paramwise_cfg=dict(layer_decay_rate=0.65),
)

# Both begin at 0 and multiply, as published: at the end of the warm-up the decay has begun.
# mmengine reaches a scheduler's last value at `end - 1`.
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-6, begin=0, end=warmup_iterations + 1, by_epoch=False),
    dict(type="PolyLR", power=1.0, eta_min=0.0, begin=0, end=max_iterations + 1, by_epoch=False),
]

train_cfg = dict(type="IterBasedTrainLoop", max_iters=max_iterations, val_interval=16_000)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
default_hooks = dict(
    timer=dict(type="IterTimerHook"),
    logger=dict(type="LoggerHook", interval=50, log_metric_by_epoch=False),
    param_scheduler=dict(type="ParamSchedulerHook"),
    checkpoint=dict(type="CheckpointHook", by_epoch=False, interval=8_000),
    sampler_seed=dict(type="DistSamplerSeedHook"),
)
auto_scale_lr = dict(enable=False, base_batch_size=16)  # images per iteration over all GPUs

"""How a run behaves, whatever it trains."""

default_scope = "mmseg"
custom_imports = dict(imports=["cae_seg.registration"])
env_cfg = dict(
    cudnn_benchmark=True,
    mp_cfg=dict(mp_start_method="fork", opencv_num_threads=0),
    dist_cfg=dict(backend="nccl"),
)
log_processor = dict(by_epoch=False)
log_level = "INFO"

# Keys of cae-seg's own; mmsegmentation's tools ignore them.
precision = "auto"  # of training: fp16 on CUDA, fp32 on the CPU; or fp16, bf16, fp32, apex
# Of evaluations, convolutions and matrix products alike: fp32, in which nothing is rounded before
# it is multiplied; or tf32, fp16, bf16: faster on CUDA, labels may differ where two tie.
evaluation_precision = "fp32"

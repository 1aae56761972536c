"""How a run behaves, whatever it trains."""

default_scope = "mmseg"
custom_imports = dict(imports=["cae_seg.registration"])

precision = "auto"  # of training: fp16 on CUDA, fp32 on the CPU; or fp16, bf16, fp32, apex
evaluation_precision = "fp32"  # or fp16, bf16: faster on CUDA, labels may differ where two tie
env_cfg = dict(
    cudnn_benchmark=True,  # every training crop has one size
    mp_cfg=dict(mp_start_method="fork", opencv_num_threads=0),
    dist_cfg=dict(backend="nccl"),  # gloo on the CPU
)
log_level = "INFO"
log_processor = dict(by_epoch=False)
load_from = None
resume = False

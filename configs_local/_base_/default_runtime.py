"""How a run behaves, whatever it trains."""

default_scope = "mmseg"
custom_imports = dict(imports=["cae_seg.registration"])

precision = "auto"  # of training: fp16 on CUDA, fp32 on the CPU; or fp16, bf16, fp32, apex
evaluation_precision = "fp32"  # or fp16, bf16: faster on CUDA, labels may differ where two tie

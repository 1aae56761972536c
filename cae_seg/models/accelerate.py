"""The faster ways to the same numbers, each with a switch.

A config turns one off by its name: `model = dict(fast_paths=dict(winograd=False))`; all of them
by `fast_paths=False`. `"always"` takes a path even where it does not pay (for tests).
"""

from collections.abc import Mapping

from torch import nn

from cae_seg.errors import UserError

FAST_PATHS: dict[str, str] = {
    "efficient_attention": "attention by one kernel, the same in training and evaluation",
    "fused_block": "norms, products and residual sums of a transformer block in few kernels",
    "matrix_deconvolution": "2×2 transposed convolutions as one matrix product",
    "merged_laterals": "the last deconvolution of a map and UPerHead's 1×1 convolution as one",
    "fused_bottleneck": "3×3 convolutions over upsampled maps at the maps' own resolution",
    "winograd": "3×3 convolutions in the Winograd domain, F(4×4, 3×3); fp32 on the CPU",
    "fused_loss": "upsampling, soft-max and loss in tiles, without full-size logits",
    "progressive_loss": "exponentials of the fused loss by geometric progressions; CPU",
    "fused_prediction": "windows to labels in tiles, without full-size logits",
    "kept_memory": "freed memory stays with the process instead of going back; CPU with glibc",
}

# Those that exist only for CPUs; `python -m benchmarks cpu_paths` measures each by itself.
CPU_PATHS = ("winograd", "progressive_loss", "kept_memory")

Switch = bool | str
Switches = dict[str, Switch]


def resolve(fast_paths: Mapping[str, Switch] | Switch | None) -> Switches:
    """Return the switch of every fast path; what is not named is on.

    Args:
        fast_paths: name → True, False or "always"; or one value for all.

    Raises:
        UserError: an unknown name or value.
    """
    if fast_paths is None or isinstance(fast_paths, bool | str):
        value = True if fast_paths is None else fast_paths
        fast_paths = dict.fromkeys(FAST_PATHS, value)
    unknown = sorted(set(fast_paths) - set(FAST_PATHS))
    if unknown:
        raise UserError(
            f"fast_paths.{unknown[0]}: no such fast path; there are {', '.join(FAST_PATHS)}"
        )
    for name, value in fast_paths.items():
        if value not in (True, False, "always"):
            raise UserError(f"fast_paths.{name}: {value!r} is none of True, False, 'always'")
    return dict.fromkeys(FAST_PATHS, True) | dict(fast_paths)


def switch(model: nn.Module, switches: Switches) -> None:
    """Hand the switches on to the layers that name their fast path in `fast_path`."""
    for module in model.modules():
        name = getattr(module, "fast_path", None)
        if name is not None:
            module.fast = switches[name]

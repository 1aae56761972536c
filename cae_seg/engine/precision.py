"""Number formats of training: which one a device takes, and its optimiser wrapper."""

import contextlib
import importlib.util
from collections.abc import Iterator
from typing import Any

import torch

from cae_seg.errors import UserError

PRECISIONS = ("fp16", "bf16", "fp32", "apex")
EVALUATION_PRECISIONS = ("fp32", "tf32", "fp16", "bf16")
_WRAPPERS: dict[str, dict[str, Any]] = {
    "fp32": {"type": "OptimWrapper"},
    "fp16": {"type": "AmpOptimWrapper", "dtype": "float16", "loss_scale": "dynamic"},
    "bf16": {"type": "AmpOptimWrapper", "dtype": "bfloat16", "loss_scale": {"enabled": False}},
    "apex": {"type": "ApexOptimWrapper", "opt_level": "O1", "loss_scale": "dynamic"},
}
_MIXED_ONLY = ("dtype", "loss_scale", "use_fsdp", "opt_level")


def choose_precision(asked: str, kind: str, wrapper: dict[str, Any] | None = None) -> str:
    """Return "fp16", "bf16", "fp32" or "apex" for a device.

    Args:
        asked: one of these, or "auto": what the config's optimiser wrapper says, else fp16 on
            "cuda"; always fp32 on "cpu".
        kind: "cuda" or "cpu".
        wrapper: `optim_wrapper` of the config.

    Raises:
        UserError: unknown, or not for this device, or NVIDIA's apex is missing.
    """
    if asked == "auto":
        return "fp32" if kind == "cpu" else _configured(wrapper or {})
    if asked not in PRECISIONS:
        raise UserError(f"precision {asked}: is none of auto, {', '.join(PRECISIONS)}")
    if asked != "fp32" and kind == "cpu":
        raise UserError(f"precision {asked}: needs a GPU; on the CPU use fp32 (or auto)")
    if asked == "apex":
        _require_apex()
    return asked


def wrap_optimizer(optim_wrapper: dict[str, Any], precision: str) -> dict[str, Any]:
    """Return the config of an optimiser wrapper for a precision; other keys stay."""
    kept = {key: value for key, value in optim_wrapper.items() if key not in _MIXED_ONLY}
    wanted = _WRAPPERS[precision]
    if optim_wrapper.get("type", "OptimWrapper") == wanted["type"]:
        return {**wanted, **optim_wrapper}
    return {**kept, **wanted}


def allow_tf32(allow: bool) -> None:
    """Let matrix products and convolutions of float32 round their inputs to TF32 on CUDA, or not.

    torch's own defaults differ: convolutions may, products may not.
    """
    torch.set_float32_matmul_precision("high" if allow else "highest")
    torch.backends.cudnn.allow_tf32 = allow


@contextlib.contextmanager
def evaluating(precision: str, kind: str) -> Iterator[None]:
    """Compute in one of `EVALUATION_PRECISIONS` inside, on a device of a kind."""
    if precision == "tf32":
        allow_tf32(kind == "cuda")
        try:
            yield
        finally:
            allow_tf32(False)
        return
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(precision)
    with torch.autocast(kind, dtype, enabled=dtype is not None):
        yield


def _configured(wrapper: dict[str, Any]) -> str:
    if wrapper.get("type") == "ApexOptimWrapper":
        _require_apex()
        return "apex"
    return "bf16" if wrapper.get("dtype") == "bfloat16" else "fp16"


def _require_apex() -> None:
    if importlib.util.find_spec("apex") is None:
        problem = "is not installed"
    elif _has_amp():
        return
    else:
        problem = "has no apex.amp (removed in 25.07; or it is the unrelated `apex` from PyPI)"
    raise UserError(
        f"precision apex: NVIDIA's apex {problem}; install its tag 25.04 (pip install -v "
        "--no-build-isolation git+https://github.com/NVIDIA/apex@25.04), or use fp16, which needs "
        "no extra packages and means the same"
    )


def _has_amp() -> bool:
    try:
        return importlib.util.find_spec("apex.amp") is not None
    except ImportError:
        return False

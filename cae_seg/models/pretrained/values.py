"""Refuse tensors that cannot be weights: other kinds than dense real ones, and NaN or Inf."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cae_seg.errors import UserError

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
DEEPEST = 20  # nested containers; training scripts use three


def check_kinds(contents: Mapping[Any, Any], source: Path | str, *, depth: int = 0) -> None:
    """Check the names and kinds of all tensors in nested mappings.

    Raises:
        UserError: a tensor is sparse, quantized, nested, complex, or without data; its key is no
            text; or the mappings are nested too deep. The message names the tensor.
    """
    if depth > DEEPEST:
        raise UserError(f"{source}: holds {depth} nested dictionaries; use a plain state dict")
    for name, value in contents.items():
        if isinstance(value, Mapping):
            check_kinds(value, source, depth=depth + 1)
        elif isinstance(value, Tensor):
            kind = "under a key that is no text" if not isinstance(name, str) else _odd_kind(value)
            if kind:
                raise UserError(
                    f"{source}: the tensor {name!r} is {kind}; save dense real tensors under "
                    "their names"
                )


def check_values(
    tensors: Mapping[str, Any], target: Mapping[str, Tensor], source: Path | str
) -> None:
    """Check that tensors about to be loaded are numbers of the model's kind, all finite.

    Args:
        tensors: by the model's names.
        target: the model's state dict; names that it lacks are not looked at.
        source: the file, for messages.

    Raises:
        UserError: a weight is no floating-point tensor, or holds NaN or Inf.
    """
    for name, value in tensors.items():
        if not isinstance(value, Tensor) or not target.get(name, value).is_floating_point():
            continue
        if value.dtype not in FLOATS:
            kind = str(value.dtype).removeprefix("torch.")
            raise UserError(f"{source}: {name} is {kind}, not floating point; export it again")
        if not is_finite(value):
            raise UserError(
                f"{source}: {name} holds NaN or Inf; use a checkpoint from before the divergence, "
                "or download it again"
            )


def _odd_kind(value: Tensor) -> str | None:
    """Say in a word why a tensor cannot be a weight; None if it can."""
    kinds = {
        "sparse": value.layout is not torch.strided,
        "nested": value.is_nested,
        "without data (meta)": value.is_meta,
        "quantized": value.is_quantized,
        "complex": value.is_complex(),
    }
    return next((kind for kind, found in kinds.items() if found), None)


def is_finite(value: Tensor) -> bool:
    """Tell whether a dense real tensor holds neither NaN nor Inf."""
    # A sum is 20 times as fast and only finite if all terms are; large terms may overflow it.
    return bool(value.sum().isfinite()) or bool(torch.isfinite(value).all())

"""Build models whose parameters take no memory, to look at their names and shapes."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

# What parameters are made by. All else stays on the CPU: backbones compute their drop-path rates
# by `torch.linspace(...).item()`, which the meta device has no values for.
_FACTORIES = {torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn}


class _MetaParameters(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _FACTORIES and kwargs.get("device") is None:
            kwargs = {**kwargs, "device": "meta"}
        return func(*args, **kwargs)


@contextmanager
def on_meta_device() -> Iterator[None]:
    """Create new parameters on the meta device as long as this lasts."""
    with _MetaParameters():
        yield

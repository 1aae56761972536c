"""The precision that autocast asks for."""

import torch
from torch import Tensor


def product_dtype(x: Tensor) -> torch.dtype:
    """Return the precision in which a product with `x` is computed here."""
    if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64:
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype

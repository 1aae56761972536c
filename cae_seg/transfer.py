"""Copies from the host to a device for which the host does not wait."""

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Return `tensor` on `device`; a copy to CUDA goes through pinned memory, without waiting.

    torch keeps the pinned memory until the copy is done.
    """
    if tensor.device == device:
        return tensor
    if device.type == "cuda" and torch.cuda.is_available() and not tensor.is_pinned():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)

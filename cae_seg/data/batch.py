"""From the loader's samples to one batch on the device, without waiting for the copies."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cae_seg.transfer import to_device


def stage(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Return a batch with its images as one tensor on `device`, and its labels as another.

    What differs in size stays a list. Two copies in all, for which the host does not wait.

    Args:
        batch: `inputs`, (N, 3, H, W) or a list of (3, h, w); `data_samples`, whose `gt_sem_seg`
            become parts of the one tensor.
        device: where to.
    """
    samples = batch.get("data_samples") or []
    labelled = [sample.gt_sem_seg for sample in samples if "gt_sem_seg" in sample]
    for part, label in zip(labelled, _together([p.data for p in labelled], device), strict=True):
        part.data = label
    return {**batch, "inputs": _together(batch["inputs"], device)}


def _together(tensors: Tensor | Sequence[Tensor], device: torch.device) -> Tensor | list[Tensor]:
    if isinstance(tensors, Tensor):
        return to_device(tensors, device)
    if tensors and len({(t.shape, t.dtype, t.device) for t in tensors}) == 1:
        return to_device(torch.stack(list(tensors)), device)
    return [to_device(tensor, device) for tensor in tensors]

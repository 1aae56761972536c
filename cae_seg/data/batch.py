"""From the loader's samples to one batch on the device, ahead of the iteration that needs it."""

from collections.abc import Iterable, Iterator, Sequence
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


class Prefetcher:
    """Iterate over a loader's batches, the next of which is on its way to the device already.

    On CUDA the copies run on a stream of their own. On the CPU batches pass through.

    Args:
        loader: gives batches as `stage` takes them.
        device: where to.

    Example:
        >>> batches = iter(Prefetcher(loader, device))
        >>> data = model.data_preprocessor(next(batches), training=True)
    """

    def __init__(self, loader: Iterable[dict[str, Any]], device: torch.device) -> None:
        self._loader, self._device = loader, torch.device(device)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield the batches in the loader's order."""
        if self._device.type != "cuda":
            yield from self._loader
            return
        stream, waiting = torch.cuda.Stream(self._device), None
        for batch in self._loader:
            with torch.cuda.stream(stream):
                staged = stage(batch, self._device)
            if waiting is not None:
                yield _handed_over(waiting, stream)
            waiting = staged
        if waiting is not None:
            yield _handed_over(waiting, stream)


def _handed_over(batch: dict[str, Any], stream: "torch.cuda.Stream") -> dict[str, Any]:
    """Let the current stream wait for a batch's copies, and keep their memory until it is used."""
    current = torch.cuda.current_stream()
    current.wait_stream(stream)
    labels = [s.gt_sem_seg.data for s in batch.get("data_samples") or () if "gt_sem_seg" in s]
    for tensor in (*batch["inputs"], *labels):
        tensor.record_stream(current)
    return batch

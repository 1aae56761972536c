"""How a batch goes from a loader process to the one that trains."""

import io
import itertools
import pickle
from collections.abc import Sequence
from typing import Any

import torch
from mmengine.dataset import pseudo_collate
from mmengine.registry import FUNCTIONS
from torch import Tensor
from torch.utils.data import get_worker_info

_ALIGNED = 64  # bytes; wide loads of a processor begin at multiples


@FUNCTIONS.register_module()
def whole_batch(samples: Sequence[Any]) -> Any:
    """Collate as `pseudo_collate`; all tensors of the batch then cross processes as one.

    torch opens a connection, with a password, for each tensor: half a millisecond of the receiving
    process, or of its pinning thread, for every image and every label.
    """
    batch = pseudo_collate(samples)
    leaves = get_worker_info() is not None  # else it stays in this process
    return _WholeBatch(batch) if leaves and isinstance(batch, dict) else batch


class _WholeBatch(dict):
    """A dict that arrives in another process as a plain one, its tensors parts of one block."""

    def __reduce__(self) -> tuple:
        stream = io.BytesIO()
        pickler = _Pickler(stream)
        pickler.dump(dict(self))
        return _unpack, (_joined(pickler.tensors), stream.getvalue())


class _Pickler(pickle.Pickler):
    """Leave out tensors and remember them."""

    def __init__(self, stream: io.BytesIO) -> None:
        super().__init__(stream, protocol=pickle.HIGHEST_PROTOCOL)
        self.tensors: list[Tensor] = []

    def persistent_id(self, value: Any) -> tuple | None:
        if type(value) is not Tensor or value.device.type != "cpu" or value.requires_grad:
            return None
        self.tensors.append(value)
        return len(self.tensors) - 1, value.dtype, value.shape


class _Unpickler(pickle.Unpickler):
    def __init__(self, stream: io.BytesIO, parts: Sequence[Tensor]) -> None:
        super().__init__(stream)
        self._parts = parts

    def persistent_load(self, name: tuple) -> Tensor:
        number, dtype, shape = name
        return self._parts[number].view(dtype).view(shape)


def _joined(tensors: Sequence[Tensor]) -> tuple[Tensor, list[tuple[int, int]]]:
    """Return a block of shared memory with the bytes of tensors, and where each begins and ends."""
    sizes = [tensor.numel() * tensor.element_size() for tensor in tensors]
    room = [-(-size // _ALIGNED) * _ALIGNED for size in sizes]
    begins = [0, *itertools.accumulate(room)]
    block = torch.empty(begins[-1], dtype=torch.uint8).share_memory_()
    places = [(begin, begin + size) for begin, size in zip(begins, sizes, strict=False)]
    for tensor, (begin, end) in zip(tensors, places, strict=True):
        block[begin:end].view(tensor.dtype).view(tensor.shape).copy_(tensor)
    return block, places


def _unpack(joined: tuple[Tensor, list[tuple[int, int]]], rest: bytes) -> dict[str, Any]:
    block, places = joined
    parts = [block[begin:end] for begin, end in places]
    return _Unpickler(io.BytesIO(rest), parts).load()

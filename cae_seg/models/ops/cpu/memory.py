"""Memory that is used again instead of being fetched afresh.

Fresh memory of the size of a feature map costs more on a CPU than most of what is computed in it:
the kernel clears it and hands it out page by page, half a millisecond a megabyte.
"""

import ctypes
import functools
import math
import threading

import torch
from torch import Tensor


class Scratch(threading.local):
    """Named float32 buffers on the CPU, of each thread its own."""

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def take(self, name: str, *shape: int) -> Tensor:
        """Return an uninitialised tensor, which the next `take` of this name overwrites."""
        size = math.prod(shape)
        if name not in self._buffers or self._buffers[name].numel() < size:
            # Made in inference mode, it could not be written to outside.
            with torch.inference_mode(False):
                self._buffers[name] = torch.empty(size)
        return self._buffers[name][:size].view(shape)


scratch = Scratch()


# Parameters of glibc's mallopt, from <malloc.h>.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


@functools.cache
def keep_freed_memory() -> bool:
    """Make this process keep what it frees for its next allocation; return whether it can.

    By default glibc gives every large tensor back to the kernel and fetches the next one afresh.
    Kept instead, memory stays at its peak until the process ends.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # not glibc
        return False
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, -1))

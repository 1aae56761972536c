"""The memory of this process: how glibc manages it, and how far it rises."""

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any


def manage_memory(*, keep: bool) -> None:
    """Let glibc keep freed memory, or manage it as it does by itself after a while."""
    from cae_seg.models.ops.cpu.memory import keep_freed_memory

    if keep:
        keep_freed_memory.__wrapped__()
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        mmap_max, mmap_threshold, trim_threshold = -4, -3, -1  # <malloc.h>
        libc.mallopt(mmap_max, 65536)
        libc.mallopt(mmap_threshold, 32 << 20)
        libc.mallopt(trim_threshold, 64 << 20)
        libc.malloc_trim(0)


def peak_bytes(work: Callable[[], Any], device: str) -> int:
    """Return how far memory in use rises while `work` runs, freed memory given back."""
    gc.collect()
    if device == "cuda":
        import torch

        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return torch.cuda.max_memory_allocated() - before
    manage_memory(keep=False)
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before = _status("VmRSS")
    work()
    return _status("VmHWM") - before


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(field)

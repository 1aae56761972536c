"""What cases share: registration, timing in turns, memory, facts of the machine, results."""

import ctypes
import datetime
import gc
import importlib.metadata
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
PACKAGES = (
    "torch",
    "torchvision",
    "timm",
    "onedl-mmengine",
    "onedl-mmcv",
    "onedl-mmsegmentation",
    "numpy",
    "opencv-python",
)


@dataclass(frozen=True)
class Options:
    """What a person asks of a run of the suite.

    Args:
        device: "cpu" or "cuda".
        rounds: measurements of each side; None for the case's own number.
        quick: a small model and small images, to try the suite out.
    """

    device: str = "cpu"
    rounds: int | None = None
    quick: bool = False


Case = Callable[[Options], list[dict[str, Any]]]
CASES: dict[str, Case] = {}


def case(name: str) -> Callable[[Case], Case]:
    """Register a case, which returns rows: dicts with `what`, numbers with units in their names.

    A row with `stock` and `ours` (seconds) and `target` (ratio) is rendered as a comparison; all
    other numbers are listed after it.
    """

    def register(function: Case) -> Case:
        CASES[name] = function
        return function

    return register


def alternate(
    stock: Callable[[], Any],
    ours: Callable[[], Any],
    *,
    rounds: int,
    warmup: int = 1,
    settle: dict[str, Callable[[], Any]] | None = None,
) -> dict[str, Any]:
    """Time two callables in turns; return their medians in seconds and the ratio.

    Args:
        stock: the work, done the stock way.
        ours: the same work, done our way.
        rounds: measurements of each.
        warmup: rounds before them that do not count.
        settle: each side manages the process's memory in its own way: glibc's for stock, kept for
            ours. As turning from one to the other costs, each turn begins with this, uncounted.
    """
    times: dict[str, list[float]] = {"stock": [], "ours": []}
    for i in range(warmup + rounds):
        for name, work in (("stock", stock), ("ours", ours)):
            if settle:
                _manage_memory(keep=name == "ours")
                settle[name]()
            seconds = timed(work)
            if i >= warmup:
                times[name].append(seconds)
    medians = {name: statistics.median(values) for name, values in times.items()}
    spread = {f"{name}_all": [round(t, 4) for t in values] for name, values in times.items()}
    return medians | {"ratio": medians["stock"] / medians["ours"]} | spread


def _manage_memory(*, keep: bool) -> None:
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


def timed(work: Callable[[], Any]) -> float:
    """Return the seconds that `work` takes, on the device too."""
    gc.collect()
    synchronize()
    begin = time.perf_counter()
    work()
    synchronize()
    return time.perf_counter() - begin


def synchronize() -> None:
    """Wait for the GPU, if there is one."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


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
    _manage_memory(keep=False)
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before = _status("VmRSS")
    work()
    return _status("VmHWM") - before


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(field)


def matrix_rate(device: str, size: int | None = None) -> float:
    """Return the measured rate of a large square matrix product, in operations per second.

    float32 on the CPU, bfloat16 on CUDA. A multiply-add counts as two operations.
    """
    import torch

    size = size or (8192 if device == "cuda" else 3072)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(a)
    best = min(timed(lambda: torch.mm(a, b, out=out)) for _ in range(10))
    return 2 * size**3 / best


def machine(device: str) -> dict[str, Any]:
    """Return the facts of this machine that numbers depend on."""
    import torch

    facts = {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "load_before": round(os.getloadavg()[0], 2),
    }
    if device == "cuda":
        facts["gpu"] = torch.cuda.get_device_name()
    return facts


def _processor() -> str:
    """Return the processor's name with what tells generations apart where the name does not."""
    fields = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    flags = fields.get("flags", "").split()
    known = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_tile") if flag in flags]
    name = fields.get("model name", platform.processor())
    return f"{name} (model {fields.get('model', '?')}; {', '.join(known)})"


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None

"""What cases share: registration, options, commands, facts of the machine, where results are."""

import contextlib
import datetime
import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
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
        rounds: measurements of each side; None for as many as it takes, see `turns.in_turns`.
        quick: a small model and small images, to try the suite out.
    """

    device: str = "cpu"
    rounds: int | None = None
    quick: bool = False


Case = Callable[[Options], list[dict[str, Any]]]
CASES: dict[str, Case] = {}


def case(name: str) -> Callable[[Case], Case]:
    """Register a case, which returns rows: dicts with `what`, numbers with units in their names.

    A row with `stock` and `ours` (seconds), their `ratio`, its `spread` and `target` is rendered as
    a comparison; all other numbers are listed after it.
    """

    def register(function: Case) -> Case:
        CASES[name] = function
        return function

    return register


@contextlib.contextmanager
def competing(count: int) -> Iterator[None]:
    """Keep so many processes busy meanwhile."""
    command = [sys.executable, "-c", "while True: pass"]
    processes = [subprocess.Popen(command) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def run(words: list[str], **settings: Any) -> str:
    """Run a command in the root of the project; return what it printed.

    Args:
        words: of the command.
        settings: of `subprocess.run`.

    Raises:
        RuntimeError: it failed; with what it wrote.
    """
    done = subprocess.run(words, check=False, cwd=ROOT, capture_output=True, text=True, **settings)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return done.stdout


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

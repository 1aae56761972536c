"""A gate in the training pipeline, so that a test decides when a run is interrupted.

`write_gated_config` puts it behind the last transform of a shipped config. A run whose folder
holds a file `gate` with a number N waits once iteration N is in its metrics log, before it trains
the next one, and reports that in the file `held`; with `START` it waits while it reads its config.
It continues when the file is removed or changed. A signal that asks the run to stop removes the
file, because a run that waits for data cannot react to it.
"""

import functools
import itertools
import json
import os
import select
import shutil
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from mmengine.config import ConfigDict
from mmengine.registry import TRANSFORMS

START = -1
POLL_SECONDS = 0.1
CONFIG = """\
_base_ = ["{base}"]

from gate import gated

custom_imports = dict(imports=["gate"], allow_failed_imports=False)
train_dataloader = gated(_base_.train_dataloader)
"""


def write_gated_config(folder: Path, base: str) -> str:
    """Write a config with a gate and this module into a working folder; return its path there."""
    shutil.copy2(__file__, folder / "gate.py")
    (folder / "gated.py").write_text(CONFIG.format(base=base))
    return "gated.py"


def gated(loader: ConfigDict) -> ConfigDict:
    """Return the training loader with a gate behind the last transform of its data set."""
    _wait(lambda limit, run: limit == START)
    dataset = loader["dataset"]
    while "dataset" in dataset:
        dataset = dataset["dataset"]
    dataset["pipeline"] = [*dataset["pipeline"], {"type": "Gate"}]
    return loader


@TRANSFORMS.register_module()
class Gate:
    """Pass samples on unchanged, and only while the run may train."""

    def __call__(self, results: dict) -> dict:
        _wait(lambda limit, run: START < limit <= _iteration(run))
        return results


@functools.cache
def _run_dir() -> Path | None:
    """Return the folder of the run that this process writes the metrics of."""
    if os.environ.get("RANK", "0") != "0":
        return None
    this = psutil.Process()
    for process in (this, *this.parents()):
        words = process.cmdline()
        for word, following in itertools.pairwise([*words, ""]):
            option, _, value = word.partition("=")
            if option == "--work-dir":
                return Path(value or following).parent
    return None


def _wait(closed: Callable[[int, Path], bool]) -> None:
    """Wait while there is a gate that is closed for this run where it is now."""
    run = _run_dir()
    if run is None or not (run / "gate").exists():
        return
    held = run / "held"
    with _caught_signals() as signals:
        while (limit := _limit(run)) is not None and closed(limit, run):
            note = {"iteration": limit, "pid": os.getpid()}
            held.with_name("held.new").write_text(json.dumps(note))
            held.with_name("held.new").rename(held)
            asked_to_stop = select.select([signals], [], [], POLL_SECONDS)[0]
            if asked_to_stop and _limit(run) == limit:  # else the gate is for the next attempt
                (run / "gate").unlink(missing_ok=True)
    held.unlink(missing_ok=True)


def _limit(run: Path) -> int | None:
    try:
        return int((run / "gate").read_text())
    except FileNotFoundError:
        return None


def _iteration(run: Path) -> int:
    """Return the last iteration in the metrics log of a run."""
    from cae_seg.run.paths import open_run

    return max(open_run(run).history().train, default=0)


@contextmanager
def _caught_signals() -> Iterator[socket.socket]:
    """Yield a socket that becomes readable when this process catches a signal."""
    reader, writer = socket.socketpair()
    with reader, writer:
        writer.setblocking(False)
        before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        try:
            yield reader
        finally:
            signal.set_wakeup_fd(before)

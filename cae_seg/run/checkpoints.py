"""Checkpoints that survive: written aside, flushed to the disk, renamed; read back with doubt.

`torch.load` runs with `weights_only=True` throughout: a checkpoint holds tensors and plain values.
"""

import contextlib
import logging
import re
import time
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cae_seg.errors import UserError
from cae_seg.files import atomic_writer, fsync_folder
from cae_seg.run.metrics_log import RecordWriter

logger = logging.getLogger(__name__)

_NAME = re.compile(r"iter_(\d+)\.pth")


@dataclass(frozen=True)
class Saved:
    """One written checkpoint: its size in bytes and the seconds that writing took."""

    iteration: int
    size: int
    seconds: float


class Checkpoints:
    """The resumable states of one run.

    Args:
        folder: where `iter_<n>.pth` go.
        record: told of each write and of each file that cannot be read.
        keep: how many of the newest stay.
    """

    def __init__(self, folder: Path, record: RecordWriter, keep: int = 2) -> None:
        self.folder, self._record, self._keep = folder, record, max(keep, 2)

    def save(self, iteration: int, state: dict[str, Any]) -> Saved | None:
        """Write one state; without room for it warn, keep the older ones and return None.

        Args:
            iteration: iterations done.
            state: nested dicts and lists of tensors and plain values.
        """
        begin = time.monotonic()
        path = self.folder / f"iter_{iteration}.pth"
        state = to_cpu(state)
        try:
            with atomic_writer(path) as stream:
                torch.save(state, stream)
            size = path.stat().st_size
        except (OSError, RuntimeError, UserError) as error:
            self._warn(
                iteration,
                f"{path}: cannot be written ({_reason(error)}); "
                "the older checkpoints stay and the run goes on",
            )
            return None
        saved = Saved(iteration, size, time.monotonic() - begin)
        self._record.event("checkpoint", iteration=iteration, bytes=size, seconds=saved.seconds)
        self._prune()
        return saved

    def newest(self) -> Path | None:
        """Return the newest checkpoint that is whole, if any.

        A damaged one is warned about, renamed out of the way, and the one before is tried.
        """
        for iteration, path in self._found():
            try:
                verify(path)
                return path
            except UserError as error:
                self._warn(iteration, f"{error}; going on from the one before")
                with contextlib.suppress(OSError):
                    path.rename(path.with_suffix(".damaged"))
        return None

    def sweep(self) -> None:
        """Remove what a killed writer left half-written; only the owner of the run may."""
        for path in self.folder.glob(".iter_*.pth.*"):
            with contextlib.suppress(OSError):
                path.unlink()

    def remove_all(self) -> None:
        """Remove every state, once the run is over."""
        self.sweep()
        for path in (*(path for _, path in self._found()), *self.folder.glob("iter_*.damaged")):
            with contextlib.suppress(OSError):
                path.unlink()
        with contextlib.suppress(OSError):
            self.folder.rmdir()

    def _found(self) -> list[tuple[int, Path]]:
        """List iteration and path, newest first."""
        names = ((_NAME.fullmatch(path.name), path) for path in self.folder.glob("iter_*.pth"))
        return sorted(((int(match[1]), path) for match, path in names if match), reverse=True)

    def _prune(self) -> None:
        for _, path in self._found()[self._keep :]:
            with contextlib.suppress(OSError):
                path.unlink()
        fsync_folder(self.folder)

    def _warn(self, iteration: int, text: str) -> None:
        logger.warning("%s", text)
        self._record.event("warning", iteration=iteration, message=text)


def iteration_of(path: Path) -> int:
    """Return the iterations done that the name of a checkpoint tells."""
    return int(_NAME.fullmatch(path.name)[1])


def verify(path: Path) -> None:
    """Read a checkpoint through and compare its checksums.

    Raises:
        UserError: it is truncated, damaged or no checkpoint.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except (OSError, zipfile.BadZipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path}: truncated or no checkpoint ({_reason(error)})") from error
    if broken:
        raise UserError(f"{path}: damaged (in {broken})")


def load_state(path: Path) -> dict[str, Any]:
    """Read a checkpoint that `verify` has passed, onto the CPU."""
    return torch.load(path, map_location="cpu", weights_only=True)


def to_cpu(value: Any) -> Any:
    """Copy the tensors of a nested state to the CPU; everything else stays what it is."""
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, dict):
        return {key: to_cpu(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(to_cpu(entry) for entry in value)
    return value


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error).splitlines() or [type(error).__name__])[0]

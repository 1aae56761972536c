"""Crash-safe checkpoints: temporary file, fsync, rename; verified before they are loaded.

A checkpoint is an ordinary file of `torch.save` whose zip comment holds a checksum of all bytes
before it: the checksums of the zip format itself leave its headers out. `torch.load` runs with
`weights_only=True` throughout: a checkpoint holds tensors and plain values.
"""

import contextlib
import io
import logging
import re
import time
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from cae_seg.errors import UserError
from cae_seg.files import atomic_writer, fsync_folder
from cae_seg.run.metrics_log import MetricsLogger

logger = logging.getLogger(__name__)

_NAME = re.compile(r"iter_(\d+)\.pth")
_COMMENT = re.compile(rb"cae-seg crc32 ([0-9a-f]{8})")
_COMMENT_BYTES = 22
_CHUNK = 1 << 20


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
        metrics: told of each write and of each file that cannot be read.
        keep: how many of the newest stay.
    """

    def __init__(self, folder: Path, metrics: MetricsLogger, keep: int = 2) -> None:
        self.folder, self._metrics, self._keep = folder, metrics, max(keep, 2)

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
                save_checked(state, stream)
            size = path.stat().st_size
        except (OSError, RuntimeError, UserError) as error:
            named = str(error) if isinstance(error, UserError) else f"{path}: {_reason(error)}"
            self._warn(iteration, f"{named}; the older checkpoints stay and the run continues")
            return None
        saved = Saved(iteration, size, time.monotonic() - begin)
        self._metrics.event("checkpoint", iteration=iteration, bytes=size, seconds=saved.seconds)
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
                self._warn(iteration, f"{error}; using the checkpoint before it")
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
        return _listed(self.folder)

    def _prune(self) -> None:
        for _, path in self._found()[self._keep :]:
            with contextlib.suppress(OSError):
                path.unlink()
        fsync_folder(self.folder)

    def _warn(self, iteration: int, text: str) -> None:
        logger.warning("%s", text)
        self._metrics.event("warning", iteration=iteration, message=text)


def iteration_of(path: Path) -> int:
    """Return the iterations done that the name of a checkpoint tells."""
    return int(_NAME.fullmatch(path.name)[1])


def identity_of_newest(folder: Path) -> str | None:
    """Return the identity of the run whose newest whole checkpoint is in a folder."""
    for _, path in _listed(folder):
        with contextlib.suppress(UserError):
            verify(path)
            return load_state(path).get("meta", {}).get("identity")
    return None


def _listed(folder: Path) -> list[tuple[int, Path]]:
    """List iteration and path of each checkpoint, newest first."""
    names = ((_NAME.fullmatch(path.name), path) for path in folder.glob("iter_*.pth"))
    return sorted(((int(match[1]), path) for match, path in names if match), reverse=True)


def save_checked(state: Any, stream: BinaryIO) -> None:
    """Write a state with `torch.save`, followed by a checksum of the whole file."""
    checked = _Checksum(stream)
    torch.save(state, checked)
    comment = b"cae-seg crc32 %08x" % checked.value
    # The file ends with the length of the zip comment, two bytes that are zero so far.
    stream.seek(-2, io.SEEK_END)
    stream.write(len(comment).to_bytes(2, "little") + comment)


def verify(path: Path) -> None:
    """Read a checkpoint through and compare its checksum.

    Raises:
        UserError: it is truncated, damaged or no checkpoint of `save_checked`.
    """
    try:
        with open(path, "rb") as stream:
            whole = _is_whole(stream)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({_reason(error)})") from error
    if not whole:
        raise UserError(f"{path}: truncated, damaged or no checkpoint (its checksum differs)")


def load_state(path: Path) -> dict[str, Any]:
    """Read a checkpoint that `verify` has passed, onto the CPU."""
    return torch.load(path, map_location="cpu", weights_only=True)


class _Checksum:
    """A stream for `torch.save` that sums what passes through it."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self.value = stream, 0

    def write(self, data: Any) -> int:
        self.value = zlib.crc32(data, self.value)
        return self._stream.write(data)

    def flush(self) -> None:
        self._stream.flush()


def _is_whole(stream: BinaryIO) -> bool:
    """Tell whether a file ends with the checksum of the bytes before it."""
    body = stream.seek(0, io.SEEK_END) - _COMMENT_BYTES - 2
    if body < 0:
        return False
    stream.seek(body)
    length, named = stream.read(2), _COMMENT.fullmatch(stream.read())
    if named is None or length != _COMMENT_BYTES.to_bytes(2, "little"):
        return False
    stream.seek(0)
    value = 0
    while body and (chunk := stream.read(min(body, _CHUNK))):
        value, body = zlib.crc32(chunk, value), body - len(chunk)
    return int(named[1], 16) == zlib.crc32(b"\0\0", value)


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

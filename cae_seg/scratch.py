"""Temporary folders, those of killed processes removed."""

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import filelock

_PREFIX = f"cae-seg-{os.getuid()}-"
_YOUNG = 60.0  # s; the owner of a younger folder may not have locked it yet


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """Make a temporary folder, and remove those whose processes were killed."""
    _sweep(Path(tempfile.gettempdir()))
    with tempfile.TemporaryDirectory(prefix=_PREFIX) as name, filelock.FileLock(_lock(Path(name))):
        yield Path(name)


def _sweep(root: Path) -> None:
    for folder in root.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError, filelock.Timeout):
            status = folder.lstat()
            if status.st_uid != os.getuid() or time.time() - status.st_mtime < _YOUNG:
                continue
            with filelock.FileLock(_lock(folder), timeout=0):  # a lock that a living owner has
                shutil.rmtree(folder)


def _lock(folder: Path) -> Path:
    return folder / "in_use"

"""Locks that a dead owner releases: of a work dir, of a GPU."""

import contextlib
import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from cae_seg.errors import UserError

POLL_SECONDS = 0.2
_held: set[tuple[int, int]] = set()  # (device, inode) of the lock files of this process


class FileLock:
    """An exclusive lock on a small file, held until `release` or until this process is gone.

    A POSIX record lock: it also holds across machines on NFS and Lustre, and it is not inherited
    by forked loader workers, which outlive a killed parent by seconds. Such locks do not exclude
    within one process and end when any descriptor of the file is closed; so this module keeps
    count of its own, and nothing else may open a lock file of this process.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._descriptor: int | None = None
        self._key: tuple[int, int] | None = None

    def acquire(
        self, wait: float = 0.0, on_wait: Callable[[str], None] = lambda owner: None
    ) -> bool:
        """Try to become the owner for `wait` seconds; `on_wait` hears once who the owner is.

        Raises:
            UserError: the folder cannot be written, or its file system has no locks.
        """
        deadline = time.monotonic() + wait
        told = False
        while not self._try():
            if time.monotonic() >= deadline:
                return False
            if not told:
                told = True
                on_wait(self.owner())
            time.sleep(POLL_SECONDS)
        return True

    def release(self) -> None:
        """Give the lock up; without having it, do nothing."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            _held.discard(self._key)
            self._descriptor = self._key = None

    def owner(self) -> str:
        """Say who has the lock, as the owner wrote it down: host, process, since when."""
        if self._mine():
            return "this process"
        try:
            note = json.loads(self.path.read_text())
            job = f", SLURM job {note['slurm_job_id']}" if note.get("slurm_job_id") else ""
            return f"process {note['pid']} on {note['host']}{job} since {note['since']}"
        except (OSError, ValueError, KeyError):
            return "another process"

    def _try(self) -> bool:
        if self._mine():
            return False
        descriptor = self._open()
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            if error.errno in (errno.EACCES, errno.EAGAIN):
                return False
            raise UserError(
                f"{self.path}: this file system has no locks ({error.strerror}); "
                "mount it with locking or choose a folder elsewhere"
            ) from error
        self._descriptor, self._key = descriptor, _key(os.fstat(descriptor))
        _held.add(self._key)
        self._sign()
        return True

    def _mine(self) -> bool:
        try:
            return _key(os.stat(self.path)) in _held
        except FileNotFoundError:
            return False

    def _open(self) -> int:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            return os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written ({error.strerror})") from error

    def _sign(self) -> None:
        note = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "since": datetime.now().astimezone().isoformat(timespec="seconds"),
            "slurm_job_id": os.environ.get("SLURM_JOB_ID"),
        }
        with contextlib.suppress(OSError):  # a full disk must not keep us from the lock
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, json.dumps(note).encode(), 0)


def _key(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino

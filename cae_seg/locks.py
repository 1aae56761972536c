"""A lock that a dead owner releases, with a note of who holds it."""

import contextlib
import errno
import fcntl
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import BaseFileLock, SoftFileLease, Timeout, UnixFileLock

from cae_seg.errors import UserError
from cae_seg.files import atomic_write_json, read_note

POLL_SECONDS = 0.2
LEASE_SECONDS = 300.0
"""How long a dead owner keeps a lock on a file system without locks."""

_held: set["FileLock"] = set()  # the library releases a lock with its last reference
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)


class FileLock:
    """An exclusive lock on a small file, held until `release` or until this process is gone.

    It is `flock`, which NFSv4 passes on to the server. On a file system without it (Lustre mounted
    without `flock`) it is a marker file that its owner renews; one that is not renewed any more
    becomes free after `LEASE_SECONDS`. Host names decide nothing: containers change them.

    Args:
        path: the lock file; `<path>.json` next to it says who holds the lock.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._note = self.path.with_name(f"{self.path.name}.json")
        self._lock: BaseFileLock = UnixFileLock(
            self.path, poll_interval=POLL_SECONDS, thread_local=False, fallback_to_soft=False
        )

    def acquire(
        self,
        wait: float = 0.0,
        on_wait: Callable[[str], None] = lambda owner: None,
        *,
        quiet: float = 0.0,
    ) -> bool:
        """Try to become the owner for `wait` seconds.

        After `quiet` seconds without success, `on_wait` is called once with who the owner is.

        Raises:
            UserError: the folder cannot be written, or the lock file is a symbolic link.
        """
        if self._lock.is_locked:
            return False
        self._make_folder()
        if self._try(min(quiet, wait)):
            return True
        if wait > quiet:
            on_wait(self.owner())
            return self._try(-1.0 if wait == float("inf") else wait - quiet)
        return False

    @contextlib.contextmanager
    def held(
        self,
        wait: float = float("inf"),
        on_wait: Callable[[str], None] = lambda owner: None,
        *,
        quiet: float = 0.0,
    ) -> Iterator[None]:
        """Be the owner for a block; arguments are those of `acquire`.

        Raises:
            TimeoutError: another owner kept it for `wait` seconds; the message names it.
            UserError: as `acquire`.
        """
        if not self.acquire(wait, on_wait, quiet=quiet):
            raise TimeoutError(f"{self.path} is held by {self.owner()}")
        try:
            yield
        finally:
            self.release()

    def release(self) -> None:
        """Give the lock up; without having it, do nothing."""
        self._lock.release()
        _held.discard(self)

    def owner(self) -> str:
        """Say who has the lock, as the owner wrote it down: host, process, since when."""
        note = self.note()
        if not {"host", "pid", "since"} <= note.keys():
            return "another process"
        if (note["host"], note["pid"]) == (socket.gethostname(), os.getpid()):
            return "this process"
        job = f", SLURM job {note['slurm_job_id']}" if note.get("slurm_job_id") else ""
        return f"process {note['pid']} on {note['host']}{job} since {note['since']}"

    def held_elsewhere(self) -> bool | None:
        """Tell whether some process has the lock; None if only its host could tell."""
        try:
            if time.time() - self._lease_path().stat().st_mtime < LEASE_SECONDS:
                return True
        except OSError:
            pass
        try:
            with self.path.open() as stream:  # a shared lock needs a file opened for reading
                fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            return None if error.errno in (errno.ENOENT, *_NO_LOCKS) else True
        return False if self.note().get("host") in (None, socket.gethostname()) else None

    def note(self) -> dict[str, Any]:
        """Return what the last owner wrote: host, pid, since, slurm_job_id; empty if it is lost."""
        return read_note(self._note)

    def _try(self, wait: float) -> bool:
        try:
            self._lock.acquire(timeout=wait)
        except Timeout:
            return False
        except OSError as error:
            if error.errno in _NO_LOCKS and isinstance(self._lock, UnixFileLock):
                self._lock = self._lease()
                return self._try(wait)
            raise UserError(self._refusal(error)) from error
        _held.add(self)
        self._sign()
        return True

    def _lease_path(self) -> Path:
        return self.path.with_name(f"{self.path.name}.lease")

    def _lease(self) -> SoftFileLease:
        return SoftFileLease(
            self._lease_path(),
            poll_interval=POLL_SECONDS,
            thread_local=False,
            lease_duration=LEASE_SECONDS,
            # Another process has taken over: stop before both write.
            on_compromise=lambda _: os.kill(os.getpid(), signal.SIGTERM),
        )

    def _make_folder(self) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{self.path.parent}: cannot be made ({error.strerror})") from error

    def _refusal(self, error: OSError) -> str:
        if error.errno == errno.ELOOP:
            return f"{self.path}: is a symbolic link, which a lock may not be; remove it"
        return f"{self.path}: cannot be locked ({error.strerror}); check permissions and space"

    def _sign(self) -> None:
        note = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "since": datetime.now().astimezone().isoformat(timespec="seconds"),
            "slurm_job_id": os.environ.get("SLURM_JOB_ID"),
        }
        with contextlib.suppress(OSError, UserError):  # a full disk must not prevent the lock
            atomic_write_json(self._note, note)

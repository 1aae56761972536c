"""Locks of this machine's GPUs, so that runs started at the same time get disjoint devices.

One lock file per GPU, in a folder of the user's. The kernel drops a lock when its owner ends,
however it ends, so that nothing has to be cleaned up after a crash.
"""

import logging
import os
import random
import stat
import time
from collections.abc import Sequence
from pathlib import Path

from cae_seg.errors import UserError
from cae_seg.locks import FileLock

logger = logging.getLogger(__name__)

RETRY_SECONDS = 1.0


class GpuAllocation:
    """GPUs that are ours until `release` or until this process is gone."""

    def __init__(self, devices: tuple[str, ...], locks: list[FileLock]) -> None:
        self.devices = devices
        self._locks = locks

    def release(self) -> None:
        """Give the GPUs back."""
        for lock in self._locks:
            lock.release()


def acquire_gpus(count: int, devices: Sequence[str], folder: Path | None = None) -> GpuAllocation:
    """Take `count` of the GPUs named in `devices`, waiting until so many are free at once.

    Args:
        count: how many.
        devices: what `CUDA_VISIBLE_DEVICES` calls them: indices or UUIDs.
        folder: where the lock files are.

    Raises:
        UserError: there are fewer than `count` devices, or the folder is not ours.
    """
    if count > len(devices):
        raise UserError(f"--gpus {count}: only {len(devices)} present; ask for fewer")
    folder = folder or lock_folder()
    warned = False
    while (allocation := _try(count, devices, folder)) is None:
        if not warned:
            warned = True
            logger.warning(
                "waiting for %d free GPUs of %d (lock files in %s)", count, len(devices), folder
            )
        # Two that wait must not keep snatching single devices from each other.
        time.sleep(RETRY_SECONDS * random.uniform(0.5, 1.5))
    return allocation


def lock_folder() -> Path:
    """Return the user's folder of lock files, the same for all logins on this machine.

    Raises:
        UserError: it is a link, another user's, or writable for everyone.
    """
    given = os.environ.get("CAE_SEG_GPU_LOCK_DIR")
    # Neither TMPDIR nor XDG_RUNTIME_DIR: a run from cron has others than one from a login.
    folder = Path(given) if given else Path("/tmp") / f"cae-seg-gpus-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.lstat()
    except OSError as error:
        raise UserError(f"{folder}: cannot be made ({error.strerror})") from error
    if not stat.S_ISDIR(status.st_mode):
        raise UserError(f"{folder}: is no folder, or a link to one; set CAE_SEG_GPU_LOCK_DIR")
    if status.st_uid != os.getuid():
        raise UserError(f"{folder}: belongs to another user; set CAE_SEG_GPU_LOCK_DIR")
    if status.st_mode & stat.S_IWOTH:
        raise UserError(f"{folder}: every user may write there; run chmod o-w {folder}")
    return folder


def _try(count: int, devices: Sequence[str], folder: Path) -> GpuAllocation | None:
    taken: dict[str, FileLock] = {}
    for device in devices:
        lock = FileLock(folder / f"gpu_{device.replace('/', '_')}.lock")
        if lock.acquire():
            taken[device] = lock
        if len(taken) == count:
            return GpuAllocation(tuple(taken), list(taken.values()))
    for lock in taken.values():
        lock.release()
    return None

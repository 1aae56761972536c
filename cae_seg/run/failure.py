"""Why a run failed, in a file of its work folder, so that others can report it at once."""

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cae_seg.errors import UserError
from cae_seg.files import atomic_write_json, read_note

NAME = "failure.json"


@contextlib.contextmanager
def recording_failure(work_dir: Path) -> Iterator[None]:
    """Write down an exception that leaves this context; forget an earlier one at success.

    Nothing is created for a run that has no folder yet, and a full disk is no second error.
    """
    path = Path(work_dir) / NAME
    try:
        yield
    except Exception as error:
        with contextlib.suppress(OSError, UserError):
            if path.parent.is_dir():
                atomic_write_json(path, _note(error))
        raise
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


def _note(error: Exception) -> dict[str, Any]:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return {
        "time": time.time(),
        "error": lines[0][:500],
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "slurm_job_id": os.environ.get("SLURM_JOB_ID"),
    }


def read_failure(work_dir: Path) -> dict[str, Any] | None:
    """Return the last failure noted in a work folder, None if there is none or it is damaged."""
    note = read_note(Path(work_dir) / NAME)
    whole = isinstance(note.get("error"), str) and isinstance(note.get("time"), int | float)
    return note if whole else None

"""A user's mistake fails a workflow's job once: its retries fail at once with the same line."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from cae_seg.errors import UserError
from cae_seg.files import atomic_write_text
from cae_seg.redaction import redact
from cae_seg.run.work_dir import Busy


@contextlib.contextmanager
def final_errors(file: Path | None, attempt: int) -> Iterator[None]:
    """Keep the message of a user's mistake for the retries of the same start.

    Args:
        file: where the message goes, for the executor to read as well; None to keep nothing.
        attempt: of this start, from 1. The first one forgets what an earlier start has kept.

    Raises:
        UserError: an earlier attempt has failed by a mistake; no work was done.
    """
    if file is None:
        yield
        return
    with contextlib.suppress(OSError):
        if attempt > 1 and (message := file.read_text().strip()):
            raise UserError(message)
        file.unlink()
    try:
        yield
    except Busy:
        raise  # another process is no mistake
    except UserError as error:
        with contextlib.suppress(OSError, UserError):
            atomic_write_text(file, f"{redact(str(error))}\n")
        raise

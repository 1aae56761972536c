"""Report an unforeseen error: one line on the terminal, the traceback in a file."""

import os
import re
import tempfile
import traceback
from pathlib import Path

from cae_seg.redaction import redact

_NAMED = re.compile(r"[\w.]+(Error|Exception|Exit|Warning|Interrupt)\b")


def report_crash(error: BaseException) -> str:
    """Write the traceback of `error` to a log and return the one line to print.

    The log is in the user's state folder, which all nodes of a cluster usually share, or in the
    temporary folder where that cannot be written.
    """
    return report_traceback("".join(traceback.format_exception(error)))


def report_traceback(text: str) -> str:
    """As `report_crash`, of a traceback that another process sent; its last line is reported."""
    text = redact(text)
    log = _write(text)
    where = f"traceback in {log}" if log else "the traceback could not be written"
    return f"unexpected error: {_last_line(text)}; {where}"


def _write(text: str) -> Path | None:
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state") / "cae-seg"
    for folder in (state, Path(tempfile.gettempdir())):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # Readable by the user only: a traceback may quote what a file contained.
            descriptor, name = tempfile.mkstemp(prefix="error-", suffix=".log", dir=folder)
            with os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace") as stream:
                stream.write(text)
            return Path(name)
        except (OSError, RuntimeError):
            continue
    return None


def _last_line(text: str) -> str:
    """Return the line of a traceback that names the exception, in at most 300 characters."""
    lines = [line for line in text.splitlines() if line and not line.startswith((" ", "\t"))]
    named = (line for line in reversed(lines) if _NAMED.match(line))
    line = next(named, lines[-1] if lines else "")
    return line if len(line) <= 300 else f"{line[:300]}…"

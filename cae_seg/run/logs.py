"""Who hears what: a person the project's own lines, a file the libraries' chatter as well."""

import contextlib
import io
import logging
import logging.handlers
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

from cae_seg.redaction import redact

logger = logging.getLogger(__name__)

OURS = "cae_seg"
_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_KEPT = 10_000  # lines kept until there is a file


class SafeStream:
    """Standard error that may go away: a log reader killed first must not end the run.

    Args:
        speak: without it nothing is written.
        stream: standard error unless given.
    """

    def __init__(self, speak: bool = True, stream: TextIO | None = None) -> None:
        self._speak, self._stream = speak, stream or sys.stderr

    def write(self, text: str) -> int:
        """Write if anybody still listens."""
        with contextlib.suppress(OSError):
            if self._speak:
                self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush if anybody still listens."""
        with contextlib.suppress(OSError):
            self._stream.flush()

    def isatty(self) -> bool:
        """Say whether a person is watching."""
        return self._speak and self._stream.isatty()

    def fileno(self) -> int:
        """Return the descriptor, which tqdm asks for the width of."""
        return self._stream.fileno()


class _RedactingFormatter(logging.Formatter):
    """Hide the credentials in URLs."""

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


class _Printed(io.TextIOBase):
    """Standard output as libraries use it at import: lines for the log."""

    def write(self, text: str) -> int:
        if text.strip():
            logging.getLogger("stdout").info("%s", text.rstrip())
        return len(text)


@contextlib.contextmanager
def suppress_import_output() -> Iterator[None]:
    """Keep what libraries print and warn of while they are loaded from the terminal."""
    with contextlib.redirect_stdout(_Printed()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class _PatientFileHandler(logging.FileHandler):
    """A log file that may become unwritable: its lines are then left out, with one warning."""

    failed = False

    def emit(self, record: logging.LogRecord) -> None:
        try:
            super().emit(record)
        except OSError:  # the file cannot be opened
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:
        if not self.failed:
            self.failed = True
            error = sys.exc_info()[1]
            reason = getattr(error, "strerror", None) or error
            logger.warning("%s: cannot be written (%s)", self.baseFilename, reason)


class LogFile:
    """Where the log goes: kept in memory until `open` names a file."""

    def __init__(self) -> None:
        self.handler = logging.handlers.MemoryHandler(_KEPT, flushLevel=logging.CRITICAL + 1)

    def open(self, path: Path) -> None:
        """Write what was kept, and everything from now on, to the end of `path`."""
        target = _PatientFileHandler(path, delay=True)
        target.setFormatter(_RedactingFormatter(_FORMAT))
        self.handler.setTarget(target)
        self.handler.capacity = 1
        self.handler.flush()

    def discard(self) -> None:
        """Keep nothing from now on."""
        self.handler.setLevel(logging.CRITICAL + 1)

    def close(self) -> None:
        """Close the file."""
        target = self.handler.target
        self.handler.close()
        if target is not None:
            with contextlib.suppress(OSError):
                target.close()


@contextlib.contextmanager
def configure_logging(*, speak: bool) -> Iterator[LogFile]:
    """Send our own messages to standard error and all messages to a file, as long as this lasts.

    Args:
        speak: whether this process talks to the person.
    """
    log = LogFile()
    root, ours = logging.getLogger(), logging.getLogger(OURS)
    before = root.handlers[:], root.level, ours.level
    voice = logging.StreamHandler(SafeStream(speak))
    voice.setFormatter(_RedactingFormatter())
    root.handlers[:] = [log.handler]
    root.setLevel(logging.INFO)
    ours.setLevel(logging.INFO)
    ours.addHandler(voice)
    logging.captureWarnings(True)
    library = _mmengine_logger()
    library.handlers[:] = [log.handler]
    try:
        with contextlib.redirect_stdout(_Printed()):
            yield log
    finally:
        library.handlers[:] = []
        logging.captureWarnings(False)
        ours.removeHandler(voice)
        root.handlers[:] = before[0]
        root.setLevel(before[1])
        ours.setLevel(before[2])
        log.close()


@contextlib.contextmanager
def separate_log(is_mine: Callable[[], bool]) -> Iterator[LogFile]:
    """Send the messages of one of several runs of this process to a file of its own.

    Args:
        is_mine: tells whether what is logged now is of this run.
    """
    log = LogFile()
    log.handler.addFilter(lambda record: is_mine())
    loggers = logging.getLogger(), _mmengine_logger()
    for each in loggers:
        each.addHandler(log.handler)
    try:
        yield log
    finally:
        for each in loggers:
            each.removeHandler(log.handler)
        log.close()


def _mmengine_logger() -> logging.Logger:
    """Return the logger that mmengine prints with; it is outside of the hierarchy."""
    from mmengine.logging import MMLogger

    return MMLogger.get_instance("cae-seg", logger_name="mmengine")

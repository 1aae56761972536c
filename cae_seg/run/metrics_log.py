"""The metrics of a run: one JSON object per line, only ever appended to.

Lines are flushed as they are written, so that a killed run loses at most a torn last line. A run
that resumes from a checkpoint repeats iterations; `cae_seg.run.paths` reads the last value each.
"""

import json
import logging
import math
import os
import time
from pathlib import Path
from typing import Any

from cae_seg.run.paths import MetricsHistory

logger = logging.getLogger(__name__)


class MetricsLogger:
    """The writer of one run's metrics log.

    Args:
        path: `metrics.jsonl`, or None to write nothing (ranks other than the first).

    Attributes:
        last: the values that were written last of each kind.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self.last: dict[str, dict[str, Any]] = {}
        self._failing = False
        if path is not None:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                _end_torn_line(path)
            except OSError as error:
                self._warn(error)

    def write(self, kind: str, **values: Any) -> None:
        """Append one line; a full disk is warned about once and does not end the run."""
        self.last[kind] = values
        if self._path is None:
            return
        line = json.dumps({"kind": kind, "time": time.time(), **_plain(values)}) + "\n"
        try:
            # Opened each time: the file may be moved away or restored under a long run.
            with open(self._path, "ab") as stream:
                if self._failing:
                    stream.write(b"\n")
                stream.write(line.encode())
            self._failing = False
        except OSError as error:
            self._warn(error)

    def _warn(self, error: OSError) -> None:
        if not self._failing:
            logger.warning("%s: cannot be written (%s)", self._path, error.strerror)
        self._failing = True

    def event(self, event: str, **values: Any) -> None:
        """Append something that happened: start, resume, checkpoint, stop, finish, warning."""
        self.write("event", event=event, **values)


def working_seconds(history: MetricsHistory) -> list[tuple[float, int]]:
    """Return how long each attempt of a run was at work, as its metrics log shows.

    An attempt lasts from its start or resume to the last line before the next one: of a killed
    one, what came after its last line is not known.

    Returns:
        Seconds, and how many runs trained together.
    """
    lines = [*history.train.values(), *history.evaluations.values(), *history.events]
    attempts: list[list[dict[str, Any]]] = []
    for line in sorted(lines, key=lambda line: line["time"]):
        if line.get("event") in ("start", "resume"):
            attempts.append([line])
        elif attempts:
            attempts[-1].append(line)
    return [(lines[-1]["time"] - lines[0]["time"], lines[0].get("runs", 1)) for lines in attempts]


def _end_torn_line(path: Path) -> None:
    with open(path, "ab+") as stream:
        if stream.seek(0, os.SEEK_END):
            stream.seek(-1, os.SEEK_END)
            if stream.read(1) != b"\n":
                stream.write(b"\n")


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """Replace what JSON has no word for (NaN, infinity) by null."""
    return {
        k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()
    }

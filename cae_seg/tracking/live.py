"""Stream a run to a tracking server while it trains, from a process of its own."""

import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cae_seg.errors import UserError
from cae_seg.redaction import redact_uri
from cae_seg.run.paths import open_run
from cae_seg.tracking.describe import labels_of
from cae_seg.tracking.store import StoreUnavailable, is_server, tracking_uri
from cae_seg.tracking.sync import RunSync, retry

LONGEST_PAUSE = 300.0
FINAL_FLUSH_SECONDS = 20.0

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def following(work_dir: Path, *, sheet: Path | None = None) -> Iterator[None]:
    """Stream what is trained inside this context, if `MLFLOW_TRACKING_URI` names a server.

    The stream is a process of its own: nothing that happens to it or to the server reaches the
    training. The embedded SQLite is left alone, it gets everything from `track` at the end.
    """
    if not is_server(tracking_uri()) or os.environ.get("SLURM_PROCID", "0") != "0":
        yield
        return
    command = [sys.executable, "-m", "cae_seg.tracking", str(work_dir)]
    command += [str(sheet)] if sheet else []
    # A session of its own, so that a Ctrl-C in the terminal is left to the training.
    process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
    try:
        yield
    finally:
        process.stdin.close()
        try:
            process.wait(FINAL_FLUSH_SECONDS + 15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def follow_parent(work_dir: Path, sheet: Path | None) -> None:
    """Follow a run until standard input ends: then the training is over, or its process dead."""
    stop = _stop_on_signal()

    def wait_for_end() -> None:
        sys.stdin.buffer.read()
        stop.set()

    threading.Thread(target=wait_for_end, daemon=True).start()
    follow(work_dir, sheet=sheet, stop=stop)


def follow(
    run_dir: Path,
    *,
    sheet: Path | None = None,
    uri: str | None = None,
    poll: float = 5.0,
    stop: threading.Event | None = None,
) -> dict[str, Any]:
    """Stream a run's metrics to MLflow until SIGTERM, Ctrl-C or `stop`.

    While the server is unreachable it warns once and retries with growing pauses; what was missed
    follows in order. What is still missing at the end is left to `track`.

    Args:
        run_dir: a seed's folder or a work dir; the run may still have to begin.
        sheet: the experiment sheet, for backbone and pretraining.
        uri: MLflow's address; `tracking_uri()` unless told.
        poll: seconds between two looks at the metrics log.
        stop: ends the stream when set.

    Returns:
        `points_sent`, and whether everything that was logged is `delivered`.
    """
    stream = _Stream(Path(run_dir), sheet, uri or tracking_uri())
    stop = stop or _stop_on_signal()
    pause = poll
    while not stop.wait(pause):
        pause = poll if stream.advance() else min(LONGEST_PAUSE, pause * 2)
    return stream.end()


def _stop_on_signal() -> threading.Event:
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop


class _Stream:
    """The state of one `follow`."""

    def __init__(self, path: Path, sheet: Path | None, uri: str) -> None:
        self._path, self._sheet, self._uri = path, sheet, uri
        self._sync: RunSync | None = None
        self._warned = False
        self._sent = 0

    def advance(self) -> bool:
        """Send what is new; return False while the server is unreachable."""
        run = open_run(self._path)
        if not run.exists or run.history().begun is None:
            return True
        if self._sync is None:
            labels = self._labels(run.metadata())
            self._sync = RunSync(run, self._uri, labels, self._sheet)
        try:
            self._sent += self._sync.sync_live()
        except StoreUnavailable as error:
            self._warn(error)
            return False
        return True

    def _labels(self, metadata: dict[str, Any]) -> dict[str, Any]:
        try:
            return labels_of(metadata, self._sheet)
        except UserError as error:
            logger.warning("%s; the run is streamed without its labels", error)
            return {}

    def _warn(self, error: Exception) -> None:
        if not self._warned:
            uri = redact_uri(self._uri)
            logger.warning("%s is unreachable (%s); training continues, retrying", uri, error)
        self._warned = True

    def end(self) -> dict[str, Any]:
        """Try for a short while to send the rest."""
        run = open_run(self._path)
        if not run.exists:
            return {"delivered": True, "points_sent": 0}
        try:
            retry(self._final_flush, FINAL_FLUSH_SECONDS)
        except StoreUnavailable as error:
            self._warn(error)
            return {"delivered": False, "points_sent": self._sent}
        return {"delivered": True, "points_sent": self._sent}

    def _final_flush(self) -> None:
        run = open_run(self._path)
        if self._sync is None:
            self._sync = RunSync(run, self._uri, self._labels(run.metadata()), self._sheet)
        self._sync.run = run
        if run.finished:
            self._sent += self._sync.sync_all()["points_sent"]
            return
        self._sent += self._sync.sync_live()
        events = run.history().events
        if events and events[-1]["event"] == "stop":
            self._sync.mark_paused()

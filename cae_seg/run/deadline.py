"""When to stop: signals, the time budget, and the end that SLURM has set."""

import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime

logger = logging.getLogger(__name__)

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
SAME_SIGNAL_SECONDS = 1.0
MARGIN_SECONDS = 10.0
SAFETY = 1.5
BYTES_PER_SECOND = 200e6


class Interrupted(Exception):
    """A long step was interrupted; it will be redone from its start."""


class StopSignal:
    """Whether a signal has asked this process to stop cleanly.

    Args:
        patient: never stop at once. A rank is patient: it may get the same signal several times,
            from its launcher, from SLURM and from the terminal.
    """

    def __init__(self, *, patient: bool = False) -> None:
        self.name: str | None = None
        self._patient = patient
        self._since = 0.0

    def receive(self, number: int, _frame: object = None) -> None:
        """Note signal `number`; fit to be a signal handler. A second Ctrl-C stops at once.

        One that follows within a second is the first one, delivered by another sender.
        """
        again = number == signal.SIGINT and self.name == "SIGINT" and not self._patient
        if again and time.monotonic() - self._since > SAME_SIGNAL_SECONDS:
            raise KeyboardInterrupt
        if self.name is None:
            self.name, self._since = signal.Signals(number).name, time.monotonic()


@contextmanager
def stop_on_signals(stop: StopSignal) -> Iterator[None]:
    """Turn SIGTERM, SIGUSR1 and SIGINT into a request to stop, as long as the context lasts."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, stop.receive) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class TimeBudget:
    """The time that this attempt has, and what the coming steps will take of it.

    Args:
        deadline: when the process must be gone, as `time.time()` tells it; None for never.
        save_seconds: first guess for writing a checkpoint, until one has been timed.
        clock: the time, in seconds.
    """

    def __init__(
        self,
        deadline: float | None,
        save_seconds: float = 0.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.deadline, self._clock = deadline, clock
        self._save = save_seconds
        self._iteration = 0.0
        self._evaluation = 0.0

    def update_save(self, seconds: float) -> None:
        """Learn how long a checkpoint took."""
        self._save = max(self._save * 0.5, seconds)

    def update_step(self, seconds: float) -> None:
        """Learn how long an iteration took; slow ones are forgotten slowly."""
        self._iteration = max(self._iteration * 0.98, seconds)

    def update_eval(self, seconds: float) -> None:
        """Learn how long an evaluation took."""
        self._evaluation = seconds

    def should_stop(self) -> bool:
        """Say whether another iteration would leave too little time for a checkpoint."""
        return self._over(2 * self._iteration)

    def has_time_for_eval(self) -> bool:
        """Say whether an evaluation as long as the last one would end before the deadline."""
        return not self._over(self._evaluation)

    def is_over(self) -> bool:
        """Say whether the deadline has passed."""
        return self.deadline is not None and self._clock() >= self.deadline

    def _over(self, upcoming: float) -> bool:
        if self.deadline is None:
            return False
        needed = SAFETY * (upcoming + self._save)
        return self._clock() + needed >= self.deadline


def deadline_of(minutes: float | None, began: float) -> float | None:
    """Return when this attempt must have ended: the earlier of its budget and SLURM's limit.

    The margin grows with the time there is, up to `MARGIN_SECONDS`, so that a budget of a few
    seconds (in tests) still does some work.

    Args:
        minutes: the time budget.
        began: when the attempt began, as `time.time()` tells it.
    """
    ends = [] if minutes is None else [began + 60 * minutes]
    if (limit := slurm_end()) is not None:
        ends.append(limit)
    if not ends:
        return None
    left = min(ends) - began
    return min(ends) - min(MARGIN_SECONDS, 0.1 * max(left, 0.0))


def slurm_end() -> float | None:
    """Return when SLURM will end this job, as `time.time()` tells it; None outside of SLURM."""
    job = os.environ.get("SLURM_JOB_ID")
    if not job:
        return None
    if end := os.environ.get("SLURM_JOB_END_TIME"):
        return float(end)
    try:
        answer = ask_slurm("squeue", "--noheader", f"--jobs={job}", "--format=%e").strip()
        return datetime.fromisoformat(answer).timestamp()
    except (OSError, subprocess.SubprocessError, ValueError):
        logger.warning("SLURM does not say when job %s ends; only signals will stop it", job)
        return None


def ask_slurm(*command: str) -> str:
    """Return what one of SLURM's commands prints, whatever the user has set for their own use.

    Raises:
        OSError, SubprocessError: the command is missing, fails or does not answer in a minute.
    """
    own = ("SQUEUE_", "SLURM_TIME_FORMAT")
    plain = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    return subprocess.run(
        command, check=True, capture_output=True, text=True, timeout=60, env=plain
    ).stdout


def guess_save_seconds(parameters: int) -> float:
    """Guess the time for a checkpoint: weights and two moments, 4 bytes each, on a slow disk."""
    return 12 * parameters / BYTES_PER_SECOND

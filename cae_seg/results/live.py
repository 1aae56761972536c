"""What a person sees on a terminal while a workflow runs: a line per job, one for the sheet."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from cae_seg.progress import duration, run_label, training_note
from cae_seg.results.run_state import RunState, last_line, sheet_states
from cae_seg.results.status import totals
from cae_seg.sheet.reading import Sheet


class Job(Protocol):
    """A running job of the workflow, started at a Unix time."""

    message: str
    wildcards: Mapping[str, str]
    logs: Sequence[str]
    started: float


def live_lines(sheet: Sheet, jobs: Sequence[Job], *, now: float | None = None) -> list[str]:
    """Return a line for each running job, and one for all runs of the sheet.

    Args:
        sheet: what is to be run.
        jobs: that are running.
        now: Unix time; the clock's by default.
    """
    now = time.time() if now is None else now
    states = sheet_states([sheet], now)
    training = {
        (state.experiment, str(state.seed)): state
        for state in states
        if state.state == "running" and state.iterations
    }
    return [*(_job_line(job, training, now) for job in jobs), totals(states, now)]


def failure_line(job: Job) -> str:
    """Return what a person reads at once of a job that failed."""
    log = _log(job)
    cause = last_line(log) or "no message"
    return f"{job.message}: failed: {cause}{f'; log {log}' if log else ''}"


def _log(job: Job) -> Path | None:
    return next((Path(log) for log in job.logs if Path(log).is_file()), None)


def _job_line(job: Job, training: Mapping[tuple, RunState], now: float) -> str:
    state = training.get((job.wildcards.get("experiment"), job.wildcards.get("seed")))
    if state is not None:
        return _training_line(state, now)
    log = _log(job)
    begun = job.started <= log.stat().st_mtime if log else False
    last = (begun and last_line(log)) or f"{duration(max(0.0, now - job.started))} elapsed"
    return f"{job.message}: {last}"


def _training_line(state: RunState, now: float) -> str:
    scored = (state.miou_iteration, state.miou) if state.miou is not None else None
    parts = [f"{state.iteration}/{state.iterations} iterations"]
    if state.ends:
        parts.append(f"{duration(max(0.0, state.ends - now))} left")
    if note := training_note(state.line or {}, scored):
        parts.append(note)
    return f"train {run_label(state.experiment, state.seed)}: {', '.join(parts)}"

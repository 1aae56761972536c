"""How far a run is, read from its files: from any machine that sees the results folder."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from cae_seg.errors import UserError
from cae_seg.run.failure import read_failure
from cae_seg.run.paths import MetricsHistory, RunDir
from cae_seg.run.work_dir import WorkDir
from cae_seg.sheet.reading import Sheet
from cae_seg.sheet.schema import Experiment

STATES = ("failed", "running", "stopped", "queued", "trained", "finished")
"""Every state, in the order in which a person wants to see them."""

# A run of which neither the lock nor SLURM tells whether it lives counts as running for so long
# after the last line of its metrics log, seconds.
SILENT_SECONDS = 900.0
SPEED_LINES = 20


@dataclass(frozen=True)
class RunState:
    """How far a run is.

    Attributes:
        experiment: name of the row.
        seed: of the run.
        state: one of `STATES`. Trained runs still have to be evaluated; stopped ones (time limit,
            signal) resume from a checkpoint.
        iteration: last one logged.
        iterations: at which training ends; None before it begins.
        line: last logged training values (loss, lr, images_per_second, gpu_memory_mb).
        miou: of the last evaluation, percent.
        miou_iteration: the iteration it belongs to.
        ends: Unix time at which training is expected to end; None if unknown.
        node: host that runs it, or ran it last.
        job: SLURM job id.
        error: why it failed, one line.
        log: what to read.
    """

    experiment: str
    seed: int
    state: str
    iteration: int = 0
    iterations: int | None = None
    line: dict[str, Any] | None = None
    miou: float | None = None
    miou_iteration: int | None = None
    ends: float | None = None
    node: str | None = None
    job: str | None = None
    error: str | None = None
    log: Path | None = None


def run_state(
    sheet: Sheet,
    row: Experiment,
    seed: int,
    now: float,
    metadata: dict[str, Any],
    metrics: dict[str, Any] | None,
) -> RunState:
    """Return how far a run of a sheet is.

    Args:
        sheet: the sheet.
        row: its row.
        seed: of the run.
        now: Unix time to measure silence by.
        metadata: of its folder, empty if it has none yet.
        metrics: its final evaluation, if there is one.
    """
    iterations = metadata.get("iterations")
    if metrics is not None:
        scored = {"miou": metrics["mIoU"], "miou_iteration": iterations}
        return RunState(row.name, seed, "finished", iterations or 0, iterations, **scored)
    run = RunDir(sheet.run_dir(row.name, seed))
    history = run.history()
    owner = WorkDir(run.work.path).last_writer()
    log = _newest_log(sheet, row.name, seed)
    state, error = _state(run, history, log, now)
    last = list(history.evaluations.values())[-1:]
    jobs = metadata.get("slurm_job_ids") or [owner.get("slurm_job_id")]
    return RunState(
        experiment=row.name,
        seed=seed,
        state=state,
        iteration=iterations if run.finished else max([*history.train, *history.evaluations, 0]),
        iterations=iterations,
        line=next(reversed(history.train.values()), None),
        miou=last[0].get("mIoU") if last else None,
        miou_iteration=last[0]["iteration"] if last else None,
        ends=_expected_end(history, iterations) if state == "running" and iterations else None,
        node=owner.get("host"),
        job=jobs[-1],
        error=error,
        log=log,
    )


def read_results(
    sheet: Sheet, row: Experiment, seed: int
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Return metadata (empty if lost) and final evaluation of a run of a sheet."""
    run = RunDir(sheet.run_dir(row.name, seed))
    try:
        return (run.metadata() if run.exists else {}), run.metrics()
    except UserError:
        if run.finished:
            raise
        return {}, None


def _state(
    run: RunDir, history: MetricsHistory, log: Path | None, now: float
) -> tuple[str, str | None]:
    held = WorkDir(run.work.path).has_writer()
    if held:
        return "running", None
    failure = read_failure(run.work.path)
    if failure is not None and failure["time"] >= (history.last_time or 0):
        return "failed", failure["error"]
    if run.errors:
        return "failed", last_line(run.errors[-1])
    if run.finished:
        return "trained", None
    if history.events and history.events[-1]["event"] in ("stop", "finish"):
        return "stopped", None
    if run.exists:
        young = now - (history.last_time or -math.inf) < SILENT_SECONDS
        silent = "ended without a message; see the log"
        return ("running", None) if held is None and young else ("failed", last_line(log) or silent)
    if log is None:
        return "queued", None
    begins = now - log.stat().st_mtime < SILENT_SECONDS and not _is_error(last_line(log))
    return ("running", None) if begins else ("failed", last_line(log))


def _newest_log(sheet: Sheet, name: str, seed: int) -> Path | None:
    logs = [p for p in (sheet.results / "logs").glob(f"*/{name}_seed{seed}.log") if p.exists()]
    return max(logs, key=os.path.getmtime, default=None)


def preparation_error(sheet: Sheet) -> str | None:
    """Return the error of the data or of a checkpoint of a sheet that runs wait for, if any."""
    logs = [sheet.results / f"logs/prepare_data/{data.root}.log" for data in sheet.used_data]
    logs += sorted(sheet.results.glob("logs/inspect_checkpoint/*.log"))
    errors = ((log, last_line(log)) for log in logs if log.is_file())
    return next((f"{line}; log {log}" for log, line in errors if _is_error(line)), None)


def last_line(log: Path | None) -> str | None:
    """Return the last error in the log's end, or else its last line."""
    if log is None:
        return None
    with log.open("rb") as stream:
        stream.seek(max(0, log.stat().st_size - 8192))
        lines = stream.read().decode(errors="replace").strip().splitlines()
    errors = [line for line in lines if _is_error(line)]
    return ([None, *lines[-1:], *errors[-1:]])[-1]


def _is_error(line: str | None) -> bool:
    return bool(line) and ("error:" in line.lower() or "Error" in line)


def _expected_end(history: MetricsHistory, iterations: int) -> float | None:
    """Return when training ends at the speed of the last lines; None while there are few."""
    begun = max((e["time"] for e in history.events if e["event"] in ("start", "resume")), default=0)
    lines = [line for line in history.train.values() if line["time"] >= begun][-SPEED_LINES:]
    if len(lines) < 2 or lines[-1]["iteration"] == lines[0]["iteration"]:
        return None
    seconds = lines[-1]["time"] - lines[0]["time"]
    speed = seconds / (lines[-1]["iteration"] - lines[0]["iteration"])
    return lines[-1]["time"] + speed * (iterations - lines[-1]["iteration"])


def describe(state: RunState) -> str:
    """Return the particulars of a state in a few words; empty for a finished or queued run."""
    if state.state == "trained":
        return "to be evaluated"
    if state.state in ("finished", "queued"):
        return ""
    if state.iterations is None and state.state == "running":
        return "begins"
    parts = []
    if state.iterations is not None:
        parts.append(f"{state.iteration} of {state.iterations} iterations")
    if state.ends:
        parts.append(f"ends about {datetime.fromtimestamp(state.ends):%Y-%m-%d %H:%M}")
    if state.state == "stopped":
        parts.append("resumes when started again")
    if state.state == "failed" and state.log:
        parts.append(f"log {state.log}")
    return ", ".join(parts)


def sheet_states(sheets: Sequence[Sheet], now: float) -> list[RunState]:
    """Return the states of all runs of sheets, failed and running ones first.

    A finished run whose files cannot be read has failed.
    """
    states = [
        _checked_state(sheet, row, seed, now)
        for sheet in sheets
        for row in sheet.experiments
        for seed in row.seeds
    ]
    return sorted(states, key=lambda state: STATES.index(state.state))


def _checked_state(sheet: Sheet, row: Experiment, seed: int, now: float) -> RunState:
    try:
        results = read_results(sheet, row, seed)
    except UserError as error:
        log = _newest_log(sheet, row.name, seed)
        return RunState(row.name, seed, "failed", error=str(error), log=log)
    return run_state(sheet, row, seed, now, *results)

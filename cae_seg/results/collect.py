"""The files of all runs of experiment sheets → one frame, one row per run."""

import fcntl
import math
import os
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd

from cae_seg.sheet.reading import Sheet, load_sheet
from cae_seg.sheet.schema import Experiment
from cae_seg.run.paths import Record, RunFolder

SILENT_SECONDS = 900.0
SPEED_LINES = 20


Sheets = Sheet | Path | str | Sequence[Sheet | Path | str]
"""One experiment sheet or several, read or as their files."""


def open_sheets(sheets: Sheets) -> list[Sheet]:
    """Return one or several sheets, read from their files where they are paths."""
    several = sheets if isinstance(sheets, Sequence) and not isinstance(sheets, str) else [sheets]
    return [load_sheet(one) if isinstance(one, str | Path) else one for one in several]


def collect_runs(sheets: Sheets, *, now: float | None = None) -> pd.DataFrame:
    """Return one row per run (combination and seed), in the sheets' order, finished or not.

    Args:
        sheets: what was to be run. A run that several of them name counts once.
        now: Unix time to measure silence by; the clock's by default.

    Returns:
        `mIoU`, `mAcc`, `aAcc` in percent, NaN without a final evaluation; `state` is one of
        finished, trained, running, stopped, failed, queued, with particulars in `progress`;
        `folder` is where the run's files are.

    Raises:
        UserError: a sheet is wrong, or a file of results is no JSON.
    """
    now = time.time() if now is None else now
    places = {
        sheet.run_folder(row.name, seed): (sheet, row, seed)
        for sheet in reversed(open_sheets(sheets))
        for row in reversed(sheet.experiments)
        for seed in reversed(row.seeds)
    }
    return pd.DataFrame([_run(*place, now) for place in reversed(places.values())])


def _run(sheet: Sheet, row: Experiment, seed: int, now: float) -> dict[str, Any]:
    run = RunFolder(sheet.run_folder(row.name, seed))
    facts, metrics = (run.facts() if run.exists else {}), run.metrics()
    state, progress = _state(run, facts, metrics, now)
    if state in ("queued", "failed"):
        state, progress = _state_from_log(sheet, row, seed, state, progress, now)
    scores = metrics or {}
    return {
        "sheet": str(sheet.path),
        "folder": run.path,
        "experiment": row.name,
        "backbone": row.backbone,
        "method": row.method,
        "pretraining_epochs": row.pretraining_epochs,
        "learning_rate": row.learning_rate,
        "seed": seed,
        "config": row.config,
        "published_miou": _number(row.published_miou),
        "changes": row.recipe_changes,
        "mIoU": _number(scores.get("mIoU")),
        "mAcc": _number(scores.get("mAcc")),
        "aAcc": _number(scores.get("aAcc")),
        "state": state,
        "progress": progress,
        "gpu_hours": _number(facts.get("gpu_hours")),
        "iterations": facts.get("iterations"),
        "precision": facts.get("precision"),
        "batch": facts.get("batch", {}).get("total"),
        "device": facts.get("device", {}).get("name"),
        "aug_test": scores.get("aug_test", False),
        "images": scores.get("images"),
        "data": scores.get("data_fingerprint"),
        "code": _codes(facts, scores, "fingerprint"),
        "commit": _codes(facts, scores, "commit"),
        "dirty": any(_codes(facts, scores, "dirty")),
        "same_weights": facts.get("weights", {}).get("sha256") == scores.get("weights_sha256"),
    }


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _codes(facts: dict[str, Any], scores: dict[str, Any], key: str) -> tuple:
    """Return what training and evaluation ran with, once if it is the same."""
    values = [part["code"].get(key) for part in (facts, scores) if part.get("code")]
    return tuple(dict.fromkeys(value for value in values if value))


def _state(
    run: RunFolder, facts: dict[str, Any], metrics: dict[str, Any] | None, now: float
) -> tuple[str, str]:
    if metrics is not None:
        return "finished", ""
    if run.finished:
        return "trained", "to be evaluated"
    if not run.exists:
        return "queued", ""
    record = run.record()
    done = max([*record.train, *record.evaluations], default=0)
    progress = f"{done} of {facts['iterations']} iterations"
    if _is_written(run, record, now):
        return "running", progress + _expected_end(record, facts["iterations"])
    if record.events and record.events[-1]["event"] == "stop":
        return "stopped", f"{progress}, goes on when started again"
    return "failed", progress


def _is_written(run: RunFolder, record: Record, now: float) -> bool:
    """Say whether a process trains here: it holds the lock of the work folder.

    On a file system where locks do not reach other machines a young record counts as well.
    """
    try:
        with (run.work / "writer.lock").open() as stream:
            fcntl.lockf(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        pass
    except OSError:
        return True
    stopped = bool(record.events) and record.events[-1]["event"] in ("stop", "finish")
    return not stopped and now - (record.last_time or -math.inf) < SILENT_SECONDS


def _expected_end(record: Record, iterations: int) -> str:
    """Return when training ends at the speed of the last lines; nothing while there are few."""
    begun = max((e["time"] for e in record.events if e["event"] in ("start", "resume")), default=0)
    lines = [line for line in record.train.values() if line["time"] >= begun][-SPEED_LINES:]
    if len(lines) < 2 or lines[-1]["iteration"] == lines[0]["iteration"]:
        return ""
    seconds = lines[-1]["time"] - lines[0]["time"]
    speed = seconds / (lines[-1]["iteration"] - lines[0]["iteration"])
    end = lines[-1]["time"] + speed * (iterations - lines[-1]["iteration"])
    return f", ends about {datetime.fromtimestamp(end).astimezone():%Y-%m-%d %H:%M}"


def _state_from_log(
    sheet: Sheet, row: Experiment, seed: int, state: str, progress: str, now: float
) -> tuple[str, str]:
    """Name the log of a failed run; a run with a log and nothing else fails or begins."""
    logs = list((sheet.results / "logs").glob(f"*/{row.name}_seed{seed}.log"))
    if not logs:
        return state, progress
    log = max(logs, key=os.path.getmtime)
    if state == "queued" and now - log.stat().st_mtime < SILENT_SECONDS:
        return "running", "begins"
    return "failed", ", ".join(part for part in (progress, f"log {log}") if part)

"""The files of all runs of experiment sheets → one frame, one row per run."""

import math
import os
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd

from cae_seg.sheet.sheet import Experiment, Sheet, load_sheet
from cae_seg.run.paths import Record, RunFolder
from cae_seg.run.work_dir import WorkDir

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
        failed = [rule for rule in ("fine_tune", "evaluate") if run.error_file(rule).is_file()]
        return ("failed", "before it began") if failed else ("queued", "")
    record = run.record()
    done = max([*record.train, *record.evaluations], default=0)
    progress = f"{done} of {facts['iterations']} iterations"
    if _is_written(run, record, now):
        return "running", progress + _expected_end(record, facts["iterations"])
    if record.events and record.events[-1]["event"] == "stop":
        return "stopped", f"{progress}, goes on when started again"
    return "failed", progress


def _is_written(run: RunFolder, record: Record, now: float) -> bool:
    """Tell whether a process trains here: it holds the lock of the work folder.

    Where only the owner's host could tell, a young record that does not end in a stop counts.
    """
    held = WorkDir(run.work).has_writer()
    if held is not None:
        return held
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


<<<<<<< HEAD
def combine(runs: pd.DataFrame, *, code_fingerprint: str | None = None) -> pd.DataFrame:
    """Return one row a combination, in the sheet's order, unrounded.

    Args:
        runs: what `collect_runs` returns.
        code_fingerprint: of the code that is here now; runs made with other code are marked.

    Returns:
        `mIoU` is the mean over the finished seeds, `mIoU_std` their sample standard deviation
        (NaN for one seed), `difference` from the published value; `best` marks the best learning
        rate of each backbone and pretraining length; `notes` says what keeps a row from being
        compared with the others.
    """
    usual = _usual(runs[runs["state"] == "finished"])
    groups = runs.groupby("experiment", sort=False)
    frame = pd.DataFrame([_row(group, usual, code_fingerprint) for _, group in groups])
    frame["best"] = _best(frame)
    return frame


def _usual(finished: pd.DataFrame) -> dict[str, Any]:
    """Return what most finished runs have in common."""
    columns = ("data", "iterations", "precision", "batch", "aug_test", "images", "changes")
    counts = {column: Counter(finished[column].dropna()) for column in columns}
    usual = {column: count.most_common(1)[0][0] for column, count in counts.items() if count}
    codes = Counter(code for codes in finished["code"] for code in codes)
    return usual | ({"code": codes.most_common(1)[0][0]} if codes else {})


def _row(group: pd.DataFrame, usual: dict[str, Any], code: str | None) -> dict[str, Any]:
    first = group.iloc[0]
    done = group[group["state"] == "finished"]
    scores = list(done["mIoU"])
    mean = statistics.fmean(scores) if scores else math.nan
    notes, comparable = _notes(done, usual, code)
    kept = ("experiment", *COMBINATION, "learning_rate", "config", "published_miou")
    return {
        **{column: first[column] for column in kept},
        "n": len(scores),
        "seeds": " ".join(str(seed) for seed in done["seed"]),
        "mIoU": mean,
        "mIoU_std": statistics.stdev(scores) if len(scores) > 1 else math.nan,
        "mIoU_min": min(scores, default=math.nan),
        "mIoU_max": max(scores, default=math.nan),
        "mAcc": done["mAcc"].mean(),
        "aAcc": done["aAcc"].mean(),
        "difference": mean - first["published_miou"],
        "gpu_hours": group["gpu_hours"].sum(min_count=1),
        "iterations": _all_of(done["iterations"]),
        "precision": _all_of(done["precision"]),
        "device": _all_of(done["device"]),
        "data_fingerprint": _all_of(done["data"]),
        "commits": _all_of(commit for commits in done["commit"] for commit in commits),
        "state": _state_of_all(group),
        "notes": "; ".join(notes),
        "comparable": comparable,
    }


def _all_of(values: Any) -> str:
    distinct = dict.fromkeys(value for value in values if value is not None and value == value)
    return " ".join(str(v if not isinstance(v, float) else int(v)) for v in distinct)


def _state_of_all(group: pd.DataFrame) -> str:
    """Say how far the seeds are, together where they are equally far."""
    texts = [
        f"{run.state} ({run.progress})" if run.progress else run.state for run in group.itertuples()
    ]
    if len(set(texts)) == 1:
        return texts[0]
    return "; ".join(
        f"seed {seed}: {text}" for seed, text in zip(group["seed"], texts, strict=True)
    )


def _notes(done: pd.DataFrame, usual: dict[str, Any], code: str | None) -> tuple[list[str], bool]:
    """Return what sets a combination apart, and whether its mIoU may be compared all the same."""
    notes = [
        text
        for column, write in (
            ("data", lambda value: f"other data ({value[:8]})"),
            ("images", lambda value: f"{value:.0f} images"),
            ("iterations", lambda value: f"{value:.0f} iterations"),
            ("batch", lambda value: f"batch of {value:.0f}"),
            ("aug_test", lambda value: "test-time augmentation" if value else "no augmentation"),
        )
        for text in dict.fromkeys(
            write(value) for value in done[column].dropna() if value != usual.get(column)
        )
    ]
    changes = set(done["changes"])
    comparable = not notes and changes <= {usual.get("changes")}
    notes += [f"not the recipe: {text}" for text in sorted(changes - {""})]
    notes += [f"{p}" for p in done["precision"].dropna().unique() if p != usual.get("precision")]
    codes = {value for values in done["code"] for value in values}
    if code is not None and codes - {code}:
        notes.append("code changed since")
    elif code is None and codes - {usual.get("code")}:
        notes.append("other code")
    if done["dirty"].any():
        notes.append("uncommitted code")
    if not done["same_weights"].all():
        notes.append("trained again since the evaluation")
    return notes, comparable


def _best(frame: pd.DataFrame) -> pd.Series:
    """Mark the best of at least two learning rates of each backbone and pretraining length."""
    best = pd.Series(False, index=frame.index)
    for _, group in frame[frame["comparable"] & frame["mIoU"].notna()].groupby(list(COMBINATION)):
        if group["learning_rate"].astype(float).nunique() > 1:
            best[group["mIoU"].idxmax()] = True
    return best
=======
>>>>>>> main

"""Runs → one row per combination of checkpoint and learning rate."""

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

COMPARED = ("data_set", "backbone", "method", "head")
"""What rows must have in common to be compared across pretraining lengths and learning rates."""

COMBINATION = (*COMPARED, "pretraining_epochs")
"""What they have in common besides where learning rates alone are compared."""

Run = dict[str, Any]
"""A row of `collect_runs`. Plain: pandas takes as long for ten rows as for ten thousand."""


def aggregate(runs: pd.DataFrame, *, code_fingerprint: str | None = None) -> pd.DataFrame:
    """Return one row per combination, grouped by data set, in the order of the sheets, unrounded.

    Args:
        runs: what `collect_runs` returns.
        code_fingerprint: of the code that is here now; runs made with other code are marked.

    Returns:
        `mIoU` is the mean over the finished seeds, `mIoU_std` their sample standard deviation
        (NaN for one seed), `difference` from the published value; `best` marks the best learning
        rate of each data set, backbone, method, head and pretraining length; `notes` says what
        keeps a row from being compared with the others of its data set, backbone, method and head.
    """
    every = runs.to_dict("records")
    finished = _finished(every)
    usual = {key: _usual(part) for key, part in _grouped(finished, COMPARED).items()}
    code = _usual_code(finished)
    rows = [
        _row(group, usual.get(_key(group[0], COMPARED), {}) | code, code_fingerprint)
        for group in _grouped(every, ("sheet", "experiment")).values()
    ]
    frame = pd.DataFrame(rows)
    order = {name: place for place, name in enumerate(dict.fromkeys(frame["data_set"]))}
    frame = frame.sort_values("data_set", key=lambda names: names.map(order), kind="stable")
    frame = frame.reset_index(drop=True)
    frame["best"] = _best(frame)
    return frame


def _key(run: Run, columns: Sequence[str]) -> tuple[Any, ...]:
    return tuple(run[column] for column in columns)


def _grouped(runs: Iterable[Run], columns: Sequence[str]) -> dict[tuple[Any, ...], list[Run]]:
    """Group runs by what they have in some columns, in the order in which that first appears."""
    groups: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        groups.setdefault(_key(run, columns), []).append(run)
    return groups


def _finished(runs: Iterable[Run]) -> list[Run]:
    return [run for run in runs if run["state"] == "finished"]


def _known(runs: Iterable[Run], column: str) -> list[Any]:
    """Return the values of a column, without None and NaN."""
    return [run[column] for run in runs if not pd.isna(run[column])]


def _usual(finished: list[Run]) -> dict[str, Any]:
    """Return what most finished runs of a group have in common."""
    columns = ("data", "iterations", "precision", "batch", "images", "changes")
    columns += ("frozen", "crop", "normalisation")
    counts = {column: Counter(_known(finished, column)) for column in columns}
    return {column: count.most_common(1)[0][0] for column, count in counts.items() if count}


def _usual_code(finished: list[Run]) -> dict[str, Any]:
    """Return the code that most finished runs of all groups were made with."""
    codes = Counter(code for run in finished for code in run["code"])
    return {"code": codes.most_common(1)[0][0]} if codes else {}


def _row(group: list[Run], usual: dict[str, Any], code: str | None) -> dict[str, Any]:
    first, done = group[0], _finished(group)
    scores, hours = _known(done, "mIoU"), _known(group, "gpu_hours")
    mean = _mean(done, "mIoU")
    notes, comparable = _notes(done, usual, code)
    kept = ("sheet", "experiment", *COMBINATION, "learning_rate", "config", "published_miou")
    return {
        **{column: first[column] for column in kept},
        "n": len(scores),
        "seeds": " ".join(str(run["seed"]) for run in done),
        "mIoU_multi_scale": _mean(done, "mIoU_multi_scale"),
        "published_miou_multi_scale": first["published_miou_multi_scale"],
        "mIoU": mean,
        "mIoU_std": statistics.stdev(scores) if len(scores) > 1 else math.nan,
        "mIoU_min": min(scores, default=math.nan),
        "mIoU_max": max(scores, default=math.nan),
        "mAcc": _mean(done, "mAcc"),
        "aAcc": _mean(done, "aAcc"),
        "difference": mean - first["published_miou"],
        "gpu_hours": math.fsum(hours) if hours else math.nan,
        "iterations": _all_of(_known(done, "iterations")),
        "precision": _all_of(_known(done, "precision")),
        "device": _all_of(_known(done, "device")),
        "data_fingerprint": _all_of(_known(done, "data")),
        "dirty": any(run["dirty"] for run in done),
        "folder": str((done or group)[0]["folder"]),
        "commits": _all_of(commit for run in done for commit in run["commit"]),
        "state": _state_of_all(group),
        "notes": "; ".join(notes),
        "comparable": comparable,
    }


def _mean(runs: list[Run], column: str) -> float:
    """Return the mean of what is known of a column, or NaN."""
    values = _known(runs, column)
    return statistics.fmean(values) if values else math.nan


def _all_of(values: Iterable[Any]) -> str:
    return " ".join(str(int(v) if isinstance(v, float) else v) for v in dict.fromkeys(values))


def _state_of_all(group: list[Run]) -> str:
    """Say how far the seeds are, together where they are equally far."""
    texts = [
        f"{run['state']} ({run['progress']})" if run["progress"] else run["state"] for run in group
    ]
    if len(set(texts)) == 1:
        return texts[0]
    return "; ".join(f"seed {run['seed']}: {text}" for run, text in zip(group, texts, strict=True))


def _notes(done: list[Run], usual: dict[str, Any], code: str | None) -> tuple[list[str], bool]:
    """Return what sets a combination apart, and whether its mIoU may be compared all the same."""
    notes = [
        text
        for column, write in (
            ("data", lambda value: f"other data ({value[:8]})"),
            ("images", lambda value: f"{value:.0f} images"),
            ("iterations", lambda value: f"{value:.0f} iterations"),
            ("batch", lambda value: f"batch of {value:.0f}"),
            ("crop", lambda value: f"crop {value}"),
            ("frozen", lambda value: "frozen" if value else "not frozen"),
            ("normalisation", lambda value: f"normalisation {value}"),
        )
        for text in dict.fromkeys(
            write(value) for value in _known(done, column) if value != usual.get(column)
        )
    ]
    notes += dict.fromkeys(text for run in done for text in run["doubts"])
    notes += _repeated_weights(done)
    changes = {run["changes"] for run in done}
    comparable = not notes and changes <= {usual.get("changes")}
    notes += [f"not the recipe: {text}" for text in sorted(changes - {""})]
    notes += [p for p in dict.fromkeys(_known(done, "precision")) if p != usual.get("precision")]
    codes = {value for run in done for value in run["code"]}
    if code is not None and codes - {code}:
        notes.append("code changed since")
    elif code is None and codes - {usual.get("code")}:
        notes.append("other code")
    if any(run["dirty"] for run in done):
        notes.append("uncommitted code")
    if not all(run["same_weights"] for run in done):
        notes.append("trained again since the evaluation")
    return notes, comparable


def _repeated_weights(done: list[Run]) -> list[str]:
    """Say which seeds were evaluated with the same weights, which then count more than once."""
    times = Counter(run["weights"] for run in done)
    same = [str(run["seed"]) for run in done if times[run["weights"]] > 1]
    return [f"seeds {' '.join(same)} have the same weights"] if same else []


def _best(frame: pd.DataFrame) -> pd.Series:
    """Mark the best of at least two learning rates of what is otherwise the same."""
    best = pd.Series(False, index=frame.index)
    for _, group in frame[frame["comparable"] & frame["mIoU"].notna()].groupby(list(COMBINATION)):
        if group["learning_rate"].astype(float).nunique() > 1:
            best[group["mIoU"].idxmax()] = True
    return best

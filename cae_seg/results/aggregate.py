"""Runs → one row per combination of checkpoint and learning rate."""

import math
import statistics
from collections import Counter
from typing import Any

import pandas as pd

COMPARED = ("data_set", "backbone", "method", "head")
"""What rows must have in common to be compared across pretraining lengths and learning rates."""

COMBINATION = (*COMPARED, "pretraining_epochs")
"""What they have in common besides where learning rates alone are compared."""


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
    finished = runs[runs["state"] == "finished"]
    usual = {key: _usual(part) for key, part in finished.groupby(list(COMPARED))}
    code = _usual_code(finished)
    groups = runs.groupby(["sheet", "experiment"], sort=False)
    rows = [
        _row(group, usual.get(tuple(group.iloc[0][list(COMPARED)]), {}) | code, code_fingerprint)
        for _, group in groups
    ]
    frame = pd.DataFrame(rows)
    order = {name: place for place, name in enumerate(dict.fromkeys(frame["data_set"]))}
    frame = frame.sort_values("data_set", key=lambda names: names.map(order), kind="stable")
    frame = frame.reset_index(drop=True)
    frame["best"] = _best(frame)
    return frame


def _usual(finished: pd.DataFrame) -> dict[str, Any]:
    """Return what most finished runs of a group have in common."""
    columns = ("data", "iterations", "precision", "batch", "images", "changes")
    columns += ("frozen", "crop", "normalisation")
    counts = {column: Counter(finished[column].dropna()) for column in columns}
    return {column: count.most_common(1)[0][0] for column, count in counts.items() if count}


def _usual_code(finished: pd.DataFrame) -> dict[str, Any]:
    """Return the code that most finished runs of all groups were made with."""
    codes = Counter(code for codes in finished["code"] for code in codes)
    return {"code": codes.most_common(1)[0][0]} if codes else {}


def _row(group: pd.DataFrame, usual: dict[str, Any], code: str | None) -> dict[str, Any]:
    first = group.iloc[0]
    done = group[group["state"] == "finished"]
    scores = list(done["mIoU"].dropna())
    mean = statistics.fmean(scores) if scores else math.nan
    notes, comparable = _notes(done, usual, code)
    kept = ("sheet", "experiment", *COMBINATION, "learning_rate", "config", "published_miou")
    return {
        **{column: first[column] for column in kept},
        "n": len(scores),
        "seeds": " ".join(str(seed) for seed in done["seed"]),
        "mIoU_multi_scale": done["mIoU_multi_scale"].mean(),
        "published_miou_multi_scale": first["published_miou_multi_scale"],
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
        "dirty": bool(done["dirty"].any()),
        "folder": str((done if len(done) else group).iloc[0]["folder"]),
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
            ("crop", lambda value: f"crop {value}"),
            ("frozen", lambda value: "frozen" if value else "not frozen"),
            ("normalisation", lambda value: f"normalisation {value}"),
        )
        for text in dict.fromkeys(
            write(value) for value in done[column].dropna() if value != usual.get(column)
        )
    ]
    notes += dict.fromkeys(text for texts in done["doubts"] for text in texts)
    notes += _repeated_weights(done)
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


def _repeated_weights(done: pd.DataFrame) -> list[str]:
    """Say which seeds were evaluated with the same weights, which then count more than once."""
    same = done[done["weights"].duplicated(keep=False)]
    return [f"seeds {' '.join(map(str, same['seed']))} have the same weights"] if len(same) else []


def _best(frame: pd.DataFrame) -> pd.Series:
    """Mark the best of at least two learning rates of what is otherwise the same."""
    best = pd.Series(False, index=frame.index)
    for _, group in frame[frame["comparable"] & frame["mIoU"].notna()].groupby(list(COMBINATION)):
        if group["learning_rate"].astype(float).nunique() > 1:
            best[group["mIoU"].idxmax()] = True
    return best

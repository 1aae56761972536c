"""Runs → one row per combination of checkpoint and learning rate."""

import math
import statistics
from collections import Counter
from typing import Any

import pandas as pd

COMBINATION = ("backbone", "method", "pretraining_epochs")


def aggregate(runs: pd.DataFrame, *, code_fingerprint: str | None = None) -> pd.DataFrame:
    """Return one row per combination, in the order of the sheets, unrounded.

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
    groups = runs.groupby(["sheet", "experiment"], sort=False)
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
    kept = ("sheet", "experiment", *COMBINATION, "learning_rate", "config", "published_miou")
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
            ("aug_test", lambda value: "test-time augmentation" if value else "no augmentation"),
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
    """Mark the best of at least two learning rates of each backbone and pretraining length."""
    best = pd.Series(False, index=frame.index)
    for _, group in frame[frame["comparable"] & frame["mIoU"].notna()].groupby(list(COMBINATION)):
        if group["learning_rate"].astype(float).nunique() > 1:
            best[group["mIoU"].idxmax()] = True
    return best

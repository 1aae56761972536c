"""The files of all runs of experiment sheets → one frame, one row per run."""

import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from cae_seg.results.run_state import describe, read_results, run_state
from cae_seg.run.paths import RunDir
from cae_seg.run.schemas import doubts_about
from cae_seg.sheet.reading import Sheet, load_sheet
from cae_seg.sheet.schema import Experiment

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
        sheet.run_dir(row.name, seed): (sheet, row, seed)
        for sheet in reversed(open_sheets(sheets))
        for row in reversed(sheet.experiments)
        for seed in reversed(row.seeds)
    }
    return pd.DataFrame([_run(*place, now) for place in reversed(places.values())])


def _run(sheet: Sheet, row: Experiment, seed: int, now: float) -> dict[str, Any]:
    metadata, metrics = read_results(sheet, row, seed)
    state = run_state(sheet, row, seed, now, metadata, metrics)
    run = RunDir(sheet.run_dir(row.name, seed))
    augmented = run.augmented() or {}
    scores = metrics or {}
    if scores.get("aug_test"):  # is no score of the common kind
        augmented = scores
        scores = {key: v for key, v in scores.items() if key not in ("mIoU", "mAcc", "aAcc")}
    return {
        "sheet": str(sheet.path),
        "folder": run.path,
        "experiment": row.name,
        "data_set": sheet.data_label(row),
        "backbone": row.backbone,
        "method": row.method,
        "head": row.head_label,
        "pretraining_epochs": row.pretraining_epochs,
        "learning_rate": row.learning_rate,
        "seed": seed,
        "config": row.config,
        "published_miou": _number(row.published_miou),
        "published_miou_multi_scale": _number(row.published_miou_multi_scale),
        "changes": row.recipe_changes,
        "frozen": row.frozen,
        "crop": _crop(metadata.get("crop")),
        "normalisation": _normalisation(metadata.get("normalisation")),
        "mIoU_multi_scale": _number(augmented.get("mIoU")),
        "mIoU": _number(scores.get("mIoU")),
        "mAcc": _number(scores.get("mAcc")),
        "aAcc": _number(scores.get("aAcc")),
        "state": state.state,
        "progress": describe(state),
        "gpu_hours": _number(metadata.get("gpu_hours")),
        "iterations": metadata.get("iterations"),
        "precision": metadata.get("precision"),
        "batch": metadata.get("batch", {}).get("global_batch"),
        "device": metadata.get("device", {}).get("name"),
        "images": scores.get("images"),
        "data": scores.get("data_fingerprint"),
        "code": _codes(metadata, scores, "fingerprint"),
        "commit": _codes(metadata, scores, "commit"),
        "dirty": any(_codes(metadata, scores, "dirty")),
        "doubts": tuple(_doubts(run, metrics, row.name, seed)),
        "weights": scores.get("weights_sha256"),
        "same_weights": metadata.get("weights", {}).get("sha256") == scores.get("weights_sha256"),
    }


def _crop(size: list[int] | None) -> str | None:
    return None if size is None else " x ".join(map(str, size))


def _normalisation(values: dict[str, list[float]] | None) -> str | None:
    """Return mean and standard deviation as a text to compare and to read."""
    if values is None:
        return None
    return ", ".join(
        f"{name} {' '.join(f'{number:g}' for number in values[name])}" for name in ("mean", "std")
    )


def _doubts(run: RunDir, metrics: dict[str, Any] | None, name: str, seed: int) -> Iterator[str]:
    """Yield why the scores may not be those of this run's weights."""
    if metrics is not None:
        yield from doubts_about(metrics, name, seed)
        if run.changed_weights(metrics):
            yield "weights changed since the evaluation"


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _codes(metadata: dict[str, Any], scores: dict[str, Any], key: str) -> tuple:
    """Return what training and evaluation ran with, once if it is the same."""
    values = [part["code"].get(key) for part in (metadata, scores) if part.get("code")]
    return tuple(dict.fromkeys(value for value in values if value))

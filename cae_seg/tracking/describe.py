"""A run's files in MLflow's words: parameters, tags, points of curves. Knows no server."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from cae_seg.run.paths import MetricsHistory

# Names with a slash are drawn in groups by the UI; mIoU stays plain, it is the column to sort by.
TRAIN_NAMES = {
    "loss": "train/loss",
    "decode.loss_seg": "train/decode_loss",
    "decode.acc_seg": "train/decode_accuracy",
    "aux.loss_seg": "train/auxiliary_loss",
    "aux.acc_seg": "train/auxiliary_accuracy",
    "lr": "train/learning_rate",
    "grad_norm": "train/gradient_norm",
    "loss_scale": "train/loss_scale",
    "images_per_second": "speed/images_per_second",
    "data_seconds": "speed/data_seconds",
    "gpu_memory_mb": "speed/gpu_memory_mb",
}
SCORES = ("mIoU", "mAcc", "aAcc")
SCORE_DECIMALS = 2  # of percent, as published; the UI shows every digit that it is given
LABELS = ("backbone", "method", "pretraining_epochs", "learning_rate", "published_miou")
IDENTITY, BEGUN, FOLDER, DELIVERED = (
    f"cae_seg.{name}" for name in ("identity", "begun", "folder", "delivered")
)


class Point(NamedTuple):
    """One value of one curve."""

    key: str
    value: float
    time: int  # milliseconds since 1970
    step: int


def curve_points(history: MetricsHistory) -> list[Point]:
    """Return every point that a run logged, in the order of its iterations."""
    points = []
    for iteration, line in history.train.items():
        names = ((TRAIN_NAMES.get(name, f"train/{name}"), name) for name in _numbers(line))
        points += [_point(key, line[name], line["time"], iteration) for key, name in names]
    for iteration, line in history.evaluations.items():
        points += [_point(n, _score(line[n]), line["time"], iteration) for n in SCORES if n in line]
    for iteration, line in history.system.items():
        points += [_point(f"system/{n}", line[n], line["time"], iteration) for n in _numbers(line)]
    return sorted(points, key=lambda point: (point.step, point.time))


def _numbers(line: dict[str, Any]) -> Iterator[str]:
    for name, value in line.items():
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if is_number and name not in ("iteration", "time"):
            yield name


def _score(percent: float) -> float:
    return round(float(percent), SCORE_DECIMALS)


def _point(key: str, value: float, seconds: float, step: int) -> Point:
    return Point(key, float(value), round(seconds * 1000), step)


def final_points(
    metadata: dict[str, Any], metrics: dict[str, Any] | None, time: int
) -> list[Point]:
    """Return the scores of the final weights, rounded like those of `table.md`.

    They end the curves of the evaluations during training: MLflow shows the last value.
    """
    if metrics is None:
        return []
    step = metadata["iterations"]
    return [Point(name, _score(metrics[name]), time, step) for name in SCORES]


def run_name(metadata: dict[str, Any]) -> str:
    """Return what the UI lists the run as."""
    return f"{metadata.get('experiment') or metadata['config']}_seed{metadata['seed']}"


def parameters(metadata: dict[str, Any], labels: dict[str, Any]) -> dict[str, str]:
    """Return what decides a run's numbers, by the names of the columns to compare by."""
    checkpoint = metadata.get("checkpoint") or {}
    values = {
        "backbone": labels.get("backbone"),
        "pretraining_method": labels.get("method"),
        "pretraining_epochs": labels.get("pretraining_epochs"),
        "head": labels.get("head"),
        "data": labels.get("data"),
        "learning_rate": labels.get("learning_rate", metadata["learning_rate"]),
        "layer_decay": metadata.get("layer_decay"),
        "drop_path": metadata.get("drop_path"),
        "seed": metadata["seed"],
        "batch": metadata.get("batch", {}).get("global_batch"),
        "iterations": metadata["iterations"],
        "deterministic": metadata.get("deterministic"),
        "config": metadata["config"],
        "data_fingerprint": metadata.get("data", {}).get("fingerprint"),
        "checkpoint_sha256": checkpoint.get("sha256"),
        "checkpoint_path": checkpoint.get("path"),
    }
    return {key: str(value)[:6000] for key, value in values.items() if value is not None}


def tags(metadata: dict[str, Any], labels: dict[str, Any], sheet: Path | None) -> dict[str, str]:
    """Return what may differ between the attempts of one run: machine, batch split, code."""
    batch, device, code = (metadata.get(key) or {} for key in ("batch", "device", "code"))
    hours = metadata.get("gpu_hours")
    split = "{ranks} × {batch_per_rank}, micro-batch {micro_batch}, accumulation {accumulation}"
    values = {
        "precision": metadata.get("precision"),
        "device": device.get("name"),
        "device_count": device.get("count"),
        "batch_split": split.format_map({"ranks": 1, "accumulation": 1} | batch)
        if "batch_per_rank" in batch and "micro_batch" in batch
        else None,
        "accelerations": ", ".join(metadata.get("accelerations") or []) or None,
        "slurm_job_ids": ", ".join(str(job) for job in metadata.get("slurm_job_ids") or []) or None,
        "attempts": metadata.get("attempts"),
        "gpu_hours": None if hours is None else f"{hours:.3g}",
        "git_commit": code.get("commit"),
        "git_dirty": code.get("dirty"),
        "code_fingerprint": code.get("fingerprint"),
        "versions": json.dumps(metadata["versions"]) if metadata.get("versions") else None,
        "experiment": metadata.get("experiment"),
        "sheet": sheet.stem if sheet else None,
        "published_miou": labels.get("published_miou"),
        "mlflow.source.name": metadata["config"],
        "mlflow.source.git.commit": code.get("commit"),
    }
    return {key: str(value)[:5000] for key, value in values.items() if value is not None}


def dataset_input(data: dict[str, Any]) -> Any:
    """Return the data set of a run as MLflow's dataset input.

    Args:
        data: of the run's metadata: fingerprint, root, images by split.
    """
    from mlflow.entities import Dataset, DatasetInput, InputTag

    dataset = Dataset(
        name=Path(data.get("root") or "data").name,
        digest=data["fingerprint"][:36],  # MLflow's limit
        source_type="local",
        source=json.dumps({"uri": data.get("root")}),
        profile=json.dumps({"images": data.get("images")}),
    )
    return DatasetInput(dataset=dataset, tags=[InputTag("mlflow.data.context", "training")])


def labels_of(metadata: dict[str, Any], sheet: Path | None) -> dict[str, Any]:
    """Return what the sheet says of a run; nothing if the run is not in it."""
    if sheet is None or metadata.get("experiment") is None:
        return {}
    from cae_seg.sheet.reading import load_sheet

    found = load_sheet(sheet)
    for row in found.experiments:
        if row.name == metadata["experiment"]:
            places = {"head": row.head_label, "data": found.data_label(row)}
            return {name: getattr(row, name) for name in LABELS} | places
    return {}

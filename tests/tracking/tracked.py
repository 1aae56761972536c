"""What MLflow holds, read through its own client, for the tests of tracking."""

import json
import os
from pathlib import Path
from typing import Any

from fake_runs import record_lines

from cae_seg.tracking.store import open_artifacts

CURVES = {"train/loss": "loss", "train/learning_rate": "lr", "mIoU": "mIoU", "aAcc": "aAcc"}


def client(uri: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(uri, registry_uri=uri)


def active_runs(uri: str) -> list[Any]:
    """Return every run that is not deleted, of this test's experiment or of all."""
    one, name = client(uri), os.environ.get("MLFLOW_EXPERIMENT_NAME")
    where = f"name = '{name}'" if name else None
    ids = [found.experiment_id for found in one.search_experiments(filter_string=where)]
    if not ids:
        return []
    return list(one.search_runs(ids, max_results=1000))


def only_run(uri: str, experiment: str | None = "row", seed: int = 0) -> Any:
    """Return the run of this name; there must be one and only one."""
    name = f"{experiment}_seed{seed}"
    (run,) = [run for run in active_runs(uri) if run.info.run_name == name]
    return run


def curve(uri: str, run: Any, key: str) -> list[tuple[int, int, float]]:
    """Return (step, time in ms, value) of a curve in the order of MLflow."""
    history = client(uri).get_metric_history(run.info.run_id, key)
    return [(metric.step, metric.timestamp, metric.value) for metric in history]


def expected(key: str, lines: list[dict[str, Any]]) -> list[tuple[int, int, float]]:
    """Return the same as the record has it."""
    name = CURVES[key]
    return [
        (line["iteration"], round(line["time"] * 1000), line[name])
        for line in lines
        if name in line
    ]


def assert_whole(uri: str, run: Any, upto: int = 200, *, miou: float = 48.0) -> None:
    """Check that every point is there once, with its step, its time and its value."""
    lines = record_lines(upto, miou=miou)
    for key in CURVES:
        assert curve(uri, run, key) == expected(key, lines), key


def artifact_names(uri: str, run: Any, folder: str | None = None) -> set[str]:
    """Return the paths of all files shown with a run."""
    names = set()
    for entry in open_artifacts(client(uri), uri, run.info.run_id).list_artifacts(folder):
        names |= artifact_names(uri, run, entry.path) if entry.is_dir else {entry.path}
    return names


def answer(run_dir: Path) -> dict[str, Any]:
    return json.loads((run_dir / "tracked.json").read_text())

"""Makes run folders as the engine leaves them, with made-up numbers, for tests of what reads them.

`python tests/fake_runs.py FOLDER` writes a whole made-up sweep to look at.
"""

import hashlib
import json
import random
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cae_seg.sheet.reading import Sheet
from cae_seg.sheet.schema import Data, Experiment

CONFIG = "made_up"
CLASSES = [f"class {number}" for number in range(150)]
BEGUN = 1_790_000_000.0
SECONDS_AN_ITERATION = 0.5


def make_row(name: str, learning_rate: str = "1e-4", epochs: int = 800, **row: Any) -> Experiment:
    """Return a sheet's row."""
    config = f"configs_local/cae/upernet/{CONFIG}.py"
    values = {"backbone": "ViT-B", "checkpoint": "made_up.pth", "config": config} | row
    return Experiment(name=name, learning_rate=learning_rate, pretraining_epochs=epochs, **values)


def make_sheet(results: Path, rows: Sequence[Experiment]) -> Sheet:
    """Return a checked sheet of these rows."""
    return Sheet(Path("config/made_up.yaml"), results, Data(), tuple(rows))


def write_lines(path: Path, lines: Sequence[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as stream:
        stream.writelines(json.dumps(line) + "\n" for line in lines)


def train_line(iteration: int, *, late: float = 0.0) -> dict[str, Any]:
    return {
        "kind": "train",
        "iteration": iteration,
        "time": BEGUN + SECONDS_AN_ITERATION * iteration + late,
        "loss": 4.0 / (1 + iteration / 50),
        "decode.loss_seg": 3.0 / (1 + iteration / 50),
        "decode.acc_seg": 60 + iteration / 20,
        "aux.loss_seg": 1.0 / (1 + iteration / 50),
        "lr": 1e-4 * (1 - iteration / 400),
        "grad_norm": 2.5,
        "images_per_second": 32.0,
        "data_seconds": 0.01,
        "gpu_memory_mb": 9_000,
    }


def system_line(iteration: int) -> dict[str, Any]:
    time = BEGUN + SECONDS_AN_ITERATION * iteration
    return {
        "kind": "system",
        "iteration": iteration,
        "time": time,
        "cpu_utilization_percentage": 75.0,
    }


def eval_line(iteration: int, miou: float) -> dict[str, Any]:
    return {
        "kind": "eval",
        "iteration": iteration,
        "time": BEGUN + SECONDS_AN_ITERATION * iteration + 0.25,
        "mIoU": miou,
        "mAcc": miou + 10,
        "aAcc": miou + 30,
    }


def event_line(event: str, iteration: int, *, late: float = 0.0) -> dict[str, Any]:
    time = BEGUN + SECONDS_AN_ITERATION * iteration + late
    return {"kind": "event", "event": event, "iteration": iteration, "time": time}


def record_lines(upto: int, *, miou: float = 48.0, total: int = 200) -> list[dict[str, Any]]:
    """Return the lines of a run that trained `upto` of `total` iterations."""
    lines = [event_line("start", 0)]
    for iteration in range(10, upto + 1, 10):
        lines.append(train_line(iteration))
        if iteration % 50 == 0:
            lines.append(eval_line(iteration, miou - 10 * (1 - iteration / total)))
    if upto == total:
        lines.append(event_line("finish", total, late=0.5))
    return lines


def fake_metadata(name: str | None, seed: int, **changes: Any) -> dict[str, Any]:
    """Return a plausible run_metadata.json; keyword arguments replace its keys."""
    metadata = {
        "schema": 1,
        "experiment": name,
        "seed": seed,
        "config": CONFIG,
        "learning_rate": 1e-4,
        "layer_decay": 0.65,
        "drop_path": 0.1,
        "iterations": 200,
        "precision": "fp16",
        "deterministic": False,
        "device": {"type": "cuda", "name": "Made Up 80GB", "count": 2},
        "batch": {
            "global_batch": 16,
            "batch_per_rank": 8,
            "micro_batch": 4,
            "accumulation": 2,
            "ranks": 2,
        },
        "accelerations": [],
        "checkpoint": {"path": "checkpoints/made_up.pth", "sha256": "c" * 64, "layout": "cae"},
        "data": {
            "fingerprint": "d" * 64,
            "root": "data/ade20k/ADEChallengeData2016",
            "images": {"training": 20210, "validation": 2000},
        },
        "code": {"commit": "a" * 40, "dirty": False, "fingerprint": "f" * 64},
        "versions": {"torch": "2.11.0", "mmseg": "1.4.2"},
        "slurm_job_ids": ["4711"],
        "attempts": 1,
        "started": datetime.fromtimestamp(BEGUN, UTC).isoformat(),
    }
    metadata |= changes
    deciding = [
        metadata[key] for key in ("experiment", "seed", "learning_rate", "iterations", "data")
    ]
    identity = hashlib.sha256(json.dumps(deciding).encode()).hexdigest()
    return {"identity": identity, **metadata}


def start_run(folder: Path, name: str | None = "row", seed: int = 0, **metadata: Any) -> Path:
    """Make the folder of a run that has just begun; return it."""
    work = folder / "work"
    work.mkdir(parents=True, exist_ok=True)
    (work / "run_metadata.json").write_text(json.dumps(fake_metadata(name, seed, **metadata)))
    (work / "config.py").write_text("model = dict(type='FastEncoderDecoder')\n")
    (work / "train.log").write_text("iteration 10 of 200\n")
    return folder


def finish_run(folder: Path, miou: float = 48.0, *, lines: bool = True) -> None:
    """Add to a begun run all that training leaves at its end."""
    work = folder / "work"
    metadata = json.loads((work / "run_metadata.json").read_text())
    if lines:
        (work / "metrics.jsonl").unlink(missing_ok=True)
        write_lines(work / "metrics.jsonl", record_lines(200, miou=miou))
    evaluations = [
        {"iteration": i, "mIoU": miou - 10 * (1 - i / 200), "mAcc": miou + 10, "aAcc": miou + 30}
        for i in (50, 100, 150, 200)
    ]
    run = metadata | {
        "ended": datetime.fromtimestamp(BEGUN + 101, UTC).isoformat(),
        "gpu_hours": 2 * 101 / 3600,
        "seconds": 101.0,
        "weights": {"path": "work/weights.pth", "sha256": weights_digest(metadata)},
        "evaluations": evaluations,
    }
    (folder / "config.py").write_text("model = dict(type='FastEncoderDecoder')\n")
    (folder / "run.json").write_text(json.dumps(run))


def weights_digest(metadata: dict[str, Any]) -> str:
    """Return the hash of weights that no other run has."""
    return hashlib.sha256(f"{metadata['experiment']} {metadata['seed']}".encode()).hexdigest()


def class_scores(draw: random.Random, miou: float) -> list[dict[str, Any]]:
    """Return scores of all classes, one of which does not occur, whose mean is `miou`."""
    spread = min(miou, 100 - miou, 30.0)
    values = [draw.uniform(-spread, spread) / 2 for _ in CLASSES[1:]]
    shift = miou - sum(values) / len(values)
    scores = [{"IoU": value + shift, "Acc": 60.0} for value in values]
    scores.insert(7, {"IoU": None, "Acc": None})
    return [{"name": name, **score} for name, score in zip(CLASSES, scores, strict=True)]


def evaluate_run(folder: Path, miou: float = 48.0, **changes: Any) -> None:
    """Add the final evaluation."""
    metadata = json.loads((folder / "run.json").read_text())
    per_class = class_scores(random.Random(str(folder)), miou)
    metrics = {
        "schema": 1,
        "experiment": metadata["experiment"],
        "seed": metadata["seed"],
        "mIoU": miou,
        "mAcc": miou + 10,
        "aAcc": miou + 30,
        "per_class": per_class,
        "images": 2000,
        "seconds": 12.5,
        "weights_sha256": metadata["weights"]["sha256"],
        "config_sha256": "9" * 64,
        "data_fingerprint": metadata["data"]["fingerprint"],
        "aug_test": False,
        "device": "cuda",
        "code": metadata["code"],
    }
    (folder / "metrics.json").write_text(json.dumps(metrics | changes))


def make_run(
    folder: Path, name: str | None = "row", seed: int = 0, *, miou: float = 48.0, **metadata: Any
) -> Path:
    """Make the folder of a finished and evaluated run; return it."""
    start_run(folder, name, seed, **metadata)
    finish_run(folder, miou)
    evaluate_run(folder, miou)
    return folder


def make_sweep(results: Path, scores: dict[tuple[int, str], Sequence[float]]) -> Sheet:
    """Make a finished sweep.

    Args:
        results: folder of all results.
        scores: (pretraining epochs, learning rate) → mIoU of each seed.
    """
    rows = []
    for (epochs, rate), values in scores.items():
        row = make_row(f"vit_b_{epochs}_lr{rate}", rate, epochs, seeds=tuple(range(len(values))))
        for seed, miou in enumerate(values):
            folder = results / row.name / f"seed_{seed}"
            make_run(folder, row.name, seed, miou=miou, learning_rate=float(rate))
        rows.append(row)
    return make_sheet(results, rows)


if __name__ == "__main__":
    make_sweep(
        Path(sys.argv[1]),
        {
            (300, "2e-4"): (47.1, 47.3),
            (300, "3e-4"): (48.0, 48.2),
            (800, "2e-4"): (49.5, 49.9),
            (800, "4e-4"): (49.4, 49.6),
            (1600, "1e-4"): (50.2, 50.4),
            (1600, "2e-4"): (49.8, 50.0),
        },
    )

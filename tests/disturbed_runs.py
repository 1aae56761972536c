"""One combination, run under many names and disturbed in many ways, and how to look at its runs."""

import hashlib
import json
import signal
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import yaml

MEASURES = ("mIoU", "mAcc", "aAcc", "per_class", "images")
BACKBONE = {"backbone": "ViT-tiny", "pretraining_epochs": 300, "learning_rate": "1e-3"}
CHECKPOINT = "data/demo/checkpoints/cae_tiny_300e.pth"
DATA = {
    "source": "data/demo/ADEChallengeData2016.zip",
    "root": "data/demo/ade20k",
    "expected": {"training": 64, "validation": 24},
}
ITERATIONS, INTERVAL = 60, 10
# All rows are the same run: two ranks on the CPU, on two of the pretended GPUs.
DEFAULTS = {
    "gpus": 2,
    "cpus": 2,
    "device": "cpu",
    "precision": "fp32",
    "iterations": ITERATIONS,
    "options": {
        "train_cfg.val_interval": ITERATIONS // 2,
        "default_hooks.checkpoint.interval": INTERVAL,
        "default_hooks.logger.interval": 1,
    },
}


def wait_until(what: str, ready: Callable[[], object], seconds: float = 300) -> object:
    """Wait until `ready` returns something true, and return it."""
    end = time.monotonic() + seconds
    while not (found := ready()):
        assert time.monotonic() < end, f"waited {seconds:.0f} s in vain: {what}"
        time.sleep(0.2)
    return found


def write_sheet(path: Path, rows: dict[str, dict], **defaults: object) -> None:
    """Write a sheet of rows that are all the same run; its results go to a folder of its name."""
    sheet = {
        "results": f"results/{path.stem}",
        "data": DATA,
        "defaults": DEFAULTS | defaults,
        "experiments": [
            {"name": row, "checkpoint": CHECKPOINT, **BACKBONE, **keys}
            for row, keys in rows.items()
        ],
    }
    path.write_text(yaml.safe_dump(sheet))


def tracked_runs(store: Path) -> tuple[int, list[tuple]]:
    """Return how many runs an MLflow database has, and what points it has twice."""
    with sqlite3.connect(store) as database:
        (runs,) = database.execute("SELECT count(*) FROM runs").fetchone()
        doubled = database.execute(
            "SELECT key, step, count(*) FROM metrics WHERE key NOT LIKE 'system/%'"
            " GROUP BY run_uuid, key, step HAVING count(*) > 1"
        ).fetchall()
    return runs, doubled


class Run:
    """The files of one run, as they are at the moment."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.work = path / "work"

    def lines(self, kind: str) -> list[dict]:
        """Return the lines of one kind in the record; a torn last one is left out."""
        try:
            text = (self.work / "record.jsonl").read_text()
        except FileNotFoundError:
            return []
        found = [json.loads(line) for line in text.splitlines() if line.endswith("}")]
        return [line for line in found if line["kind"] == kind]

    @property
    def finished(self) -> bool:
        """Say whether training has come to its end."""
        return bool(self.events("finish"))

    def reached(self, iteration: int) -> bool:
        """Say whether training has come to an iteration."""
        return any(line["iteration"] >= iteration for line in self.lines("train"))

    def events(self, name: str) -> list[int]:
        """Return the iterations at which something happened."""
        return [line["iteration"] for line in self.lines("event") if line["event"] == name]

    def repeated(self) -> int:
        """Return how many iterations were trained more than once."""
        iterations = [line["iteration"] for line in self.lines("train")]
        return len(iterations) - len(set(iterations))

    def log(self) -> str:
        """Return what a person was told about all attempts."""
        return (self.path / "console.log").read_text()

    def json(self, name: str) -> dict:
        """Read one of the declared files."""
        return json.loads((self.path / name).read_text())

    def weights(self) -> str:
        """Return the hash of the final weights' values, not of the file, which holds dates."""
        import torch

        state = torch.load(self.work / "weights.pth", weights_only=True)["state_dict"]
        digest = hashlib.sha256()
        for key, value in sorted(state.items()):
            digest.update(key.encode())
            digest.update(value.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def processes(self) -> list[psutil.Process]:
        """Return the launcher and the ranks that work on this run, parents first."""
        mark = f"{self.path.name}"
        found = []
        for process in psutil.process_iter(["cmdline", "cwd"]):
            words = " ".join(process.info["cmdline"] or [])
            if "cae-seg train" in words and f"{self.path.parent.name}/{mark}/work" in words:
                found.append(process)
        return found

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal to the launcher."""
        for process in self.processes():
            process.send_signal(number)

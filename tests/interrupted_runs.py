"""One combination that is trained under many names and interrupted in many ways."""

import hashlib
import json
import re
import signal
import sqlite3
from pathlib import Path

import psutil
import yaml
from gate import write_gated_config

from cae_seg.run.work_dir import WorkDir

MEASURES = ("mIoU", "mAcc", "aAcc", "per_class", "images")
BACKBONE = {"backbone": "ViT-tiny", "pretraining_epochs": 300, "learning_rate": "1e-3"}
CHECKPOINT = "data/demo/checkpoints/cae_tiny_300e.pth"
DATA = {
    "source": "data/demo/ADEChallengeData2016.zip",
    "root": "data/demo/ade20k",
    "expected": {"training": 64, "validation": 24},
}
ITERATIONS, INTERVAL = 60, 10
RECIPE = "configs_local/cae/upernet/upernet_cae_tiny_demo.py"
# All rows are the same run: two ranks on the CPU, on two of the simulated GPUs.
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


def write_sheet(path: Path, rows: dict[str, dict], **defaults: object) -> None:
    """Write a sheet whose rows are all the same run, and the gated config that they train.

    The results go to a folder of the sheet's name.
    """
    keys = BACKBONE | {"checkpoint": CHECKPOINT}
    keys["config"] = write_gated_config(path.parent, RECIPE)
    sheet = {
        "results": f"results/{path.stem}",
        "data": DATA,
        "defaults": DEFAULTS | defaults,
        "experiments": [{"name": row, **keys, **own} for row, own in rows.items()],
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
    """The files of one run as they are at the moment, and its gate."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.work = path / "work"

    def hold(self, iteration: int) -> None:
        """Let the run train up to an iteration, or start at all (`gate.START`), and wait there."""
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / "gate.new").write_text(str(iteration))
        (self.path / "gate.new").rename(self.path / "gate")

    def release(self) -> None:
        """Let the run train to its end."""
        (self.path / "gate").unlink(missing_ok=True)

    @property
    def held(self) -> bool:
        """Whether a living process of the run waits at its gate."""
        try:
            note = json.loads((self.path / "held").read_text())
            alive = psutil.Process(note["pid"]).status() != psutil.STATUS_ZOMBIE
            return alive and note["iteration"] == int((self.path / "gate").read_text())
        except (FileNotFoundError, psutil.NoSuchProcess):
            return False

    def lines(self, kind: str) -> list[dict]:
        """Return the lines of one kind in the record; a torn last one is left out."""
        try:
            text = WorkDir(self.work).metrics_log.read_text()
        except FileNotFoundError:
            return []
        found = [json.loads(line) for line in text.splitlines() if line.endswith("}")]
        return [line for line in found if line["kind"] == kind]

    def events(self, name: str) -> list[int]:
        """Return the iterations at which something happened."""
        return [line["iteration"] for line in self.lines("event") if line["event"] == name]

    def repeated(self) -> int:
        """Return how many iterations were trained more than once."""
        iterations = [line["iteration"] for line in self.lines("train")]
        return len(iterations) - len(set(iterations))

    def log(self) -> str:
        """Return the console log of all attempts."""
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
        found = []
        for process in psutil.process_iter(["cmdline", "cwd"]):
            words = " ".join(process.info["cmdline"] or [])
            given = re.search(r"cae-seg train .*--work-dir=(\S+)", words)
            if given and Path(process.info["cwd"] or "", given[1]) == self.work:
                found.append(process)
        return found

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal to the launcher."""
        for process in self.processes():
            process.send_signal(number)

"""A person's view of the test cluster: a checkout to work in, jobs to watch and to disturb."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import yaml

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("Snakefile", "workflow", "config", "configs_local", "cae_seg", "environment.yml", "slurm")
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
    "options": {
        "train_cfg.max_iters": ITERATIONS,
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


class Site:
    """A working folder on the cluster, with the repository's files and results of its own.

    Args:
        path: the folder.
        environment: variables that point at the cluster.
    """

    def __init__(self, path: Path, environment: dict[str, str]) -> None:
        self.path = path
        self.cluster = Path(environment["CAE_SEG_CLUSTER_DIR"])
        self.started: list[subprocess.Popen] = []
        home = path / "home"
        home.mkdir(parents=True)
        self.environment = {
            **os.environ,
            **environment,
            "HOME": str(home),
            "XDG_CONFIG_HOME": str(home / ".config"),
            "XDG_CACHE_HOME": str(home / ".cache"),
            "PYTHONPATH": str(path),
        }
        # A copy: whoever edits the repository meanwhile does not change what is compared here.
        for name in PARTS:
            if (ROOT / name).is_dir() and not (ROOT / name).is_symlink():
                shutil.copytree(ROOT / name, path / name, symlinks=True)
            else:
                shutil.copy2(ROOT / name, path / name, follow_symlinks=False)

    def sheet(self, name: str, rows: dict[str, dict], **defaults: object) -> str:
        """Write a sheet whose results go to a folder of its name; return its path."""
        sheet = {
            "results": f"results/{name}",
            "data": DATA,
            "defaults": DEFAULTS | defaults,
            "experiments": [
                {"name": row, "checkpoint": CHECKPOINT, **BACKBONE, **keys}
                for row, keys in rows.items()
            ],
        }
        (self.path / f"{name}.yaml").write_text(yaml.safe_dump(sheet))
        return f"{name}.yaml"

    def snakemake(self, sheet: str, *arguments: str, **environment: str) -> subprocess.Popen:
        """Start Snakemake as a person would; what it says goes to a file."""
        command = [sys.executable, "-m", "snakemake", "--profile", "slurm"]
        command += ["--slurm-init-seconds-before-status-checks", "3", "--latency-wait", "15"]
        command += [*arguments, "--config", f"sheet={sheet}"]
        with self.said_file(sheet).open("a") as said:
            process = subprocess.Popen(
                command,
                cwd=self.path,
                env=self.environment | environment,
                stdout=said,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.started.append(process)
        return process

    def close(self) -> None:
        """Kill every Snakemake that was started here and lives."""
        for process in self.started:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)

    def said_file(self, sheet: str) -> Path:
        """Return where Snakemake's words about a sheet go."""
        return self.path / f"{Path(sheet).stem}.said"

    def said(self, sheet: str) -> str:
        """Return what Snakemake has said about a sheet."""
        return self.said_file(sheet).read_text()

    def ask(self, *command: str, check: bool = True) -> str:
        """Run one of SLURM's commands, which must succeed unless told; return what it said."""
        done = subprocess.run(
            command, env=self.environment, cwd=self.path, capture_output=True, text=True
        )
        assert done.returncode == 0 or not check, f"{command}: {done.stderr}"
        return done.stdout.strip()

    def job(self, experiment: str, state: str = "RUNNING", rule: str = "fine_tune") -> str:
        """Return the number of an experiment's job in a state, or nothing."""
        for line in self.ask("squeue", "--noheader", "--format=%i %j %T").splitlines():
            number, name, found = line.split()
            if name.startswith(f"{experiment}.seed0.{rule}") and found == state:
                return number
        return ""

    def attempts(self, name: str) -> list[str]:
        """Return the states that the jobs of a name ended in, a requeued one's each, by time."""
        said = self.ask(
            *("sacct", "-X", "-D", "--parsable2", "--noheader", "--starttime=now-1days"),
            "--format=JobName,State",
        )
        lines = (line.split("|") for line in said.splitlines())
        return [state.split()[0] for job, state in lines if job.startswith(f"{name}.")]

    def steps(self, job: str) -> list[psutil.Process]:
        """Return the processes of SLURM's own that look after a job's steps."""
        return [
            process
            for process in psutil.process_iter(["cmdline"])
            if " ".join(process.info["cmdline"] or []).startswith(f"slurmstepd: [{job}.")
        ]

    def run(self, sheet: str, experiment: str) -> "Run":
        """Return a run of a sheet."""
        return Run(self.path / "results" / Path(sheet).stem / experiment / "seed_0")

    def seize(self, node: str, seconds: int) -> str:
        """Take all GPUs of a node for a job that pre-empts others; return its number."""
        return self.ask(
            *("sbatch", "--parsable", "--partition=urgent", f"--nodelist={node}", "--time=5"),
            *("--gres=gpu:8", "--output=/dev/null", f"--wrap=sleep {seconds}"),
        )


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

    def json(self, name: str) -> dict:
        """Read one of the declared files."""
        return json.loads((self.path / name).read_text())

    def weights(self) -> str:
        """Return the hash of the final weights' values, not of the file, which holds dates."""
        import hashlib

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

"""A person's view of the test cluster: a checkout to work in, jobs to watch and to disturb."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from interrupted_runs import Run, write_sheet

ROOT = Path(__file__).resolve().parents[2]
PARTS = (
    "Snakefile",
    "workflow",
    "config",
    "configs_local",
    "cae_seg",
    "snakemake_executor_plugin_cae_slurm",
    "snakemake_logger_plugin_cae_live",
    "environment.yml",
    "slurm",
    "local",
)


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
        # A copy: edits of the repository meanwhile do not change what is compared here.
        for name in PARTS:
            if (ROOT / name).is_dir() and not (ROOT / name).is_symlink():
                shutil.copytree(ROOT / name, path / name, symlinks=True)
            else:
                shutil.copy2(ROOT / name, path / name, follow_symlinks=False)

    def sheet(self, name: str, rows: dict[str, dict], **defaults: object) -> str:
        """Write a sheet whose results go to a folder of its name; return its path."""
        write_sheet(self.path / f"{name}.yaml", rows, **defaults)
        return f"{name}.yaml"

    def snakemake(self, sheet: str, *arguments: str, **environment: str) -> subprocess.Popen:
        """Start Snakemake as a person would; what it says goes to a file."""
        command = [sys.executable, "-m", "snakemake", "--profile", "slurm"]
        command += ["--cae-slurm-init-seconds-before-status-checks", "3", "--latency-wait", "15"]
        command += [*arguments, "--config", f"sheet={sheet}"]
        with self.output_file(sheet).open("a") as stream:
            process = subprocess.Popen(
                command,
                cwd=self.path,
                env=self.environment | environment,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.started.append(process)
        return process

    def unlock(self) -> None:
        """Remove the lock of a killed Snakemake."""
        self.ask(sys.executable, "-m", "snakemake", "--unlock")

    def close(self) -> None:
        """Kill every Snakemake that was started here and lives."""
        for process in self.started:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)

    def output_file(self, sheet: str) -> Path:
        """Return where Snakemake's words about a sheet go."""
        return self.path / f"{Path(sheet).stem}.out"

    def output(self, sheet: str) -> str:
        """Return what Snakemake has printed about a sheet."""
        return self.output_file(sheet).read_text()

    def ask(self, *command: str, check: bool = True) -> str:
        """Run one of SLURM's commands, which must succeed if `check`; return what it printed."""
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
        answer = self.ask(
            *("sacct", "-X", "-D", "--parsable2", "--noheader", "--starttime=now-1days"),
            "--format=JobName,State",
        )
        lines = (line.split("|") for line in answer.splitlines())
        return [state.split()[0] for job, state in lines if job.startswith(f"{name}.")]

    def steps(self, job: str) -> list[psutil.Process]:
        """Return the processes of SLURM's own that look after a job's steps."""
        return [
            process
            for process in psutil.process_iter(["cmdline"])
            if " ".join(process.info["cmdline"] or []).startswith(f"slurmstepd: [{job}.")
        ]

    def run(self, sheet: str, experiment: str) -> Run:
        """Return a run of a sheet."""
        return Run(self.path / "results" / Path(sheet).stem / experiment / "seed_0")

    def seize(self, node: str, seconds: int) -> str:
        """Take all GPUs of a node for a job that pre-empts others; return its number."""
        return self.ask(
            *("sbatch", "--parsable", "--partition=urgent", f"--nodelist={node}", "--time=5"),
            *("--gres=gpu:8", "--output=/dev/null", f"--wrap=sleep {seconds}"),
        )


def finish(process: subprocess.Popen, site: Site, sheet: str, seconds: float = 3000) -> int:
    """Wait for a Snakemake; the end of its log is the message of a failure."""
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        pytest.fail(f"Snakemake did not end: {site.output(sheet)[-3000:]}")


STUB = """\
#!/bin/sh
[ "$1" = train ] && sleep "${{STUB_SECONDS:-1}}"
exec {stub} "$@"
"""


def stub_training(site: Site) -> Path:
    """Let training at a site take a second; return the first folder of its `PATH`."""
    folder = site.path / "bin"
    folder.mkdir()
    (folder / "cae-seg").write_text(STUB.format(stub=ROOT / "tests/workflow/stub_cae_seg.sh"))
    (folder / "cae-seg").chmod(0o755)
    site.environment["PATH"] = f"{folder}:{site.environment['PATH']}"
    return folder

"""A copy of the repository to run Snakemake in, with a stand-in for the expensive commands."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parents[1]
PARTS = (
    "Snakefile",
    "environment.yml",
    "workflow",
    "config",
    "configs_local",
    "cae_seg",
    "snakemake_executor_plugin_cae_slurm",
    "snakemake_logger_plugin_cae_live",
)
LONGEST_SECONDS = 7000.0  # guards against hanging
PROFILES = ("local", "slurm", "demo")
OF_MAKE = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")  # of the `make` that tests run under
FOR_MAKE = (
    *("Makefile", "requirements.txt", "pyproject.toml", "mkdocs.yml"),
    *("README.md", "CHANGELOG.md", "docs", "tools"),
)


class Checkout:
    """A copy of the workflow in a folder of its own.

    Args:
        path: an empty folder.
        stub: whether `cae-seg` is a stand-in that writes files at once.
    """

    def __init__(self, path: Path, *, stub: bool = True) -> None:
        self.path = path
        self._copy(PARTS)
        for profile in PROFILES:
            shutil.copy2(ROOT / profile, path / profile, follow_symlinks=False)
        (path / "bin").mkdir()
        if stub:
            shutil.copy2(ROOT / "tests/workflow/stub_cae_seg.sh", path / "bin/cae-seg")

    def _copy(self, parts: tuple[str, ...]) -> None:
        for part in parts:
            source = ROOT / part
            if source.is_dir():
                caches = shutil.ignore_patterns("__pycache__")
                shutil.copytree(source, self.path / part, symlinks=True, ignore=caches)
            else:
                shutil.copy2(source, self.path / part)

    def install(self) -> None:
        """Add what `make` reads, and the environment of this Python as the one it installed."""
        self._copy(FOR_MAKE)
        (self.path / ".venv").mkdir()
        for part in ("bin", "lib", "pyvenv.cfg"):
            if (source := Path(sys.prefix) / part).exists():
                (self.path / ".venv" / part).symlink_to(source)
        (self.path / ".venv/.installed").touch()

    def shell(self, script: str, *, good: tuple[int, ...] = (0,)) -> str:
        """Run lines of a shell here, which must end with a status of `good`; return the output."""
        done = subprocess.run(
            ["bash", "-ec", script],
            cwd=self.path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=LONGEST_SECONDS,
            env=self.environment(),
        )
        assert done.returncode in good, f"{script}\n{done.stdout[-4000:]}"
        return done.stdout

    def snakemake(
        self, *arguments: str, timeout: float = LONGEST_SECONDS, **environment: str
    ) -> subprocess.CompletedProcess:
        """Run Snakemake here, with this copy's `cae_seg` and an empty home folder."""
        return subprocess.run(
            self._command(arguments),
            cwd=self.path,
            capture_output=True,
            text=True,
            timeout=timeout,
            env=self.environment() | environment,
        )

    def start(self, *arguments: str, output: IO, **environment: str) -> subprocess.Popen:
        """Start Snakemake here as a terminal would; what it says goes to `output`."""
        return subprocess.Popen(
            self._command(arguments),
            cwd=self.path,
            stdout=output,
            stderr=output,
            start_new_session=True,
            # A shell's background processes, as these tests may be, ignore Ctrl-C.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            env=self.environment() | environment,
        )

    def _command(self, arguments: tuple[str, ...]) -> list[str]:
        return [sys.executable, "-m", "snakemake", *arguments]

    def environment(self) -> dict[str, str]:
        """Return the variables for a process here: this copy's `cae_seg`, an empty home folder."""
        home = self.path / "home"
        home.mkdir(exist_ok=True)
        folders = [self.path / "bin", Path(sys.executable).parent, os.environ["PATH"]]
        inherited = {key: text for key, text in os.environ.items() if key not in OF_MAKE}
        return {
            **inherited,
            "HOME": str(home),
            "XDG_CONFIG_HOME": str(home / ".config"),
            "PYTHONPATH": str(self.path),
            "PATH": os.pathsep.join(map(str, folders)),
        }

    def run(self, *arguments: str, timeout: float = LONGEST_SECONDS, **environment: str) -> str:
        """Run Snakemake, which must succeed; return what it output."""
        done = self.snakemake(*arguments, timeout=timeout, **environment)
        output = done.stdout + done.stderr
        assert done.returncode == 0, output
        return output

    def plan(self, *arguments: str) -> "Plan":
        """Return what Snakemake would run."""
        return Plan(self.run("--dry-run", *arguments))

    def edit(self, file: str, old: str, new: str) -> None:
        """Replace a text that stands once in a file."""
        text = (self.path / file).read_text()
        assert text.count(old) == 1, f"{old!r} stands {text.count(old)} times in {file}"
        (self.path / file).write_text(text.replace(old, new))

    def age(self) -> None:
        """Put everything an hour into the past, so that what is touched next is newer."""
        for file in [self.path, *self.path.rglob("*")]:
            if ".snakemake" not in file.parts:
                stamp = file.lstat().st_mtime - 3600
                os.utime(file, (stamp, stamp), follow_symlinks=False)


class Plan:
    """The jobs that a dry-run names."""

    def __init__(self, output: str) -> None:
        self.messages = re.findall(r"^Job \d+: (.*)$", output, re.MULTILINE)
        table = output.split("Job stats:")[-1] if "Job stats:" in output else ""
        counted = re.findall(r"^(\S+) +(\d+)$", table.split("\n\n")[0], re.MULTILINE)
        self.jobs = Counter({name: int(count) for name, count in counted if name != "total"})

    @property
    def trained(self) -> set[str]:
        """Experiment and seed of every training, as "experiment/seed"."""
        found = (re.match(r"Fine-tune (\S+), seed (\d+):", message) for message in self.messages)
        return {f"{match[1]}/{match[2]}" for match in found if match}

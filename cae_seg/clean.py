"""What a results folder holds that no result depends on, and its removal."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cae_seg.errors import UserError
from cae_seg.locks import FileLock
from cae_seg.run.paths import RunDir, find_runs


@dataclass(frozen=True)
class Leftover:
    """A file or folder that may be removed: its path, why, and its size in bytes."""

    path: Path
    reason: str
    size: int


def leftovers(results: Path, workflow: Path = Path()) -> list[Leftover]:
    """List what may be removed, without what a running process may still need.

    Args:
        results: the results folder of a sheet.
        workflow: the folder that Snakemake runs in.

    Raises:
        UserError: there is no such results folder.
    """
    if not results.is_dir():
        raise UserError(f"{results}: no such folder; name the results folder of a sheet")
    found = [*_of_runs(results), *_of_mlflow(results), *_of_snakemake(workflow)]
    return [Leftover(path, reason, _size(path)) for path, reason in found]


def remove(found: list[Leftover]) -> int:
    """Remove leftovers; return the bytes that became free.

    Raises:
        UserError: one of them cannot be removed.
    """
    for leftover in found:
        try:
            if leftover.path.is_dir():
                shutil.rmtree(leftover.path)
            else:
                leftover.path.unlink()
        except OSError as error:
            raise UserError(
                f"{leftover.path}: cannot be removed ({error.strerror}); fix its permissions"
            ) from error
    return sum(leftover.size for leftover in found)


def _of_runs(results: Path) -> Iterator[tuple[Path, str]]:
    for path in sorted(results.glob("*/seed_*/work.stale-*")):
        yield path, "state of a run with another recipe, checkpoint or data"
    for run in find_runs(results):
        if ".stale-" in run.path.name or _is_written(run):
            continue
        states = run.work.checkpoints
        if run.finished and states.is_dir():
            yield states, "resumable states of a finished run"
        elif states.is_dir():
            for path in sorted(states.glob("*.damaged")):
                yield path, "damaged state"


def _is_written(run: RunDir) -> bool:
    """Return whether a process trains in this run's folder."""
    if not run.work.lock.is_file():
        return False
    lock = FileLock(run.work.lock)
    free = lock.acquire()
    lock.release()
    return not free


def _of_mlflow(results: Path) -> Iterator[tuple[Path, str]]:
    for path in sorted(results.glob("*.db.before-upgrade")):
        yield path, "copy of the MLflow database from before an upgrade"


def _of_snakemake(workflow: Path) -> Iterator[tuple[Path, str]]:
    for name, reason in (
        ("log", "logs of earlier starts of Snakemake"),
        ("slurm_logs", "logs of SLURM jobs"),
    ):
        path = workflow / ".snakemake" / name
        # A Snakemake that lives here writes into them.
        if path.is_dir() and not any((workflow / ".snakemake/locks").glob("*")):
            yield path, reason


def _size(path: Path) -> int:
    files = [path] if path.is_file() else path.rglob("*")
    return sum(file.lstat().st_size for file in files if not file.is_dir())

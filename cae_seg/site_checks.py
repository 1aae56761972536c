"""Checks of a SLURM site before a workflow starts: what else would fail hours later."""

import math
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from cae_seg.errors import UserError
from cae_seg.run.deadline import ask_slurm
from cae_seg.run.work_dir import WorkDir
from cae_seg.sheet.reading import Sheet
from cae_seg.sheet.schema import Experiment

PROFILE = Path("slurm/profile.yaml")
LOCAL_FILE_SYSTEMS = ("ext2/ext3", "xfs", "btrfs", "tmpfs", "overlayfs", "zfs")
SHORT_AGE = 120  # s; a job that the controller forgets sooner may end unseen
Check = tuple[bool, str]

_OPTIONS = {
    "slurm_partition": "--partition",
    "slurm_account": "--account",
    "qos": "--qos",
    "constraint": "--constraint",
    "mem_mb": "--mem",
}


def check_site(sheet: Sheet) -> Iterator[Check]:
    """Yield whether each thing that a workflow on a cluster needs is there, and a line about it.

    Args:
        sheet: the experiments whose jobs are tried.
    """
    yield from _jobs(sheet)
    yield _accounting()
    yield _shared_folder()
    yield _locks()


def _jobs(sheet: Sheet) -> Iterator[Check]:
    """Yield whether SLURM would take a training of the sheet, once for each kind of job."""
    try:
        defaults = _defaults(PROFILE)
    except UserError as error:
        yield False, f"SLURM: jobs are not checked ({error})"
        return
    for command, row in _requests(sheet, defaults).items():
        try:
            ask_slurm("sbatch", "--test-only", *command, "--wrap=true")
            yield True, f"SLURM: takes trainings such as {row.name} ({' '.join(command)})"
        except (OSError, subprocess.SubprocessError) as error:
            yield False, f"SLURM: refuses the training of {row.name}: {_reason(error)}"


def _requests(sheet: Sheet, defaults: dict[str, Any]) -> dict[tuple[str, ...], Experiment]:
    requests: dict[tuple[str, ...], Experiment] = {}
    for row in sheet.experiments:
        requests.setdefault(_request(row, defaults), row)
    return requests


def _request(row: Experiment, defaults: dict[str, Any]) -> tuple[str, ...]:
    """Return the options of `sbatch` that a training's row and the profile come to."""
    own = {key: value for key, value in row.resources.model_dump().items() if value is not None}
    asked = defaults | {"mem_mb": row.memory_mb} | own
    options = [f"{option}={asked[key]}" for key, option in _OPTIONS.items() if asked.get(key)]
    if row.gpus:
        model = [asked["gpu_model"]] if asked.get("gpu_model") else []
        options.append(":".join(["--gres=gpu", *model, str(row.gpus // row.nodes)]))
    minutes = own.get("runtime", "2-00:00:00")  # of the rule fine_tune
    if isinstance(minutes, int) or "-" in minutes:
        options.append(f"--time={minutes}")
    return (*options, f"--nodes={row.nodes}", f"--cpus-per-task={row.cores}")


def _defaults(profile: Path) -> dict[str, Any]:
    try:
        found = yaml.safe_load(profile.read_text()) or {}
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"{profile}: cannot be read ({error})") from error
    kept = (*_OPTIONS, "gpu_model")
    defaults = found.get("default-resources") or {}
    return {key: defaults[key] for key in kept if key in defaults and key != "mem_mb"}


def _accounting() -> Check:
    try:
        ask_slurm("sacct", "--allocations", "--noheader", "--format=JobID")
        return True, "SLURM: keeps accounts (sacct answers)"
    except (OSError, subprocess.SubprocessError) as error:
        age = _seconds_remembered()
        text = f"SLURM: no accounting ({_reason(error)}); squeue alone is asked, which remembers"
        return age >= SHORT_AGE, f"{text} a finished job for {age:.0f} s ({SHORT_AGE} s are needed)"


def _seconds_remembered() -> float:
    try:
        lines = ask_slurm("scontrol", "show", "config").splitlines()
        line = next(line for line in lines if line.strip().startswith("MinJobAge"))
        return float(line.split("=")[1].split()[0])
    except (OSError, subprocess.SubprocessError, StopIteration, ValueError, IndexError):
        return math.nan


def _shared_folder() -> Check:
    kind = subprocess.run(
        ["stat", "--file-system", "--format=%T", "."], capture_output=True, text=True
    ).stdout.strip()
    if kind in LOCAL_FILE_SYSTEMS:
        return True, f"folder: on {kind}, which other nodes usually do not see; check that they do"
    return True, f"folder: on {kind or 'an unknown file system'}"


def _locks() -> Check:
    folder = Path("results")
    work = WorkDir(folder / ".lock_check")
    try:
        work.path.mkdir(parents=True, exist_ok=True)
        work.await_other_writer(0)
        kind = "a renewed marker file" if list(work.path.glob("*.lease*")) else "flock"
        return True, f"locks: {kind} works in {folder}"
    except (OSError, UserError) as error:
        return False, f"locks: {error}"
    finally:
        shutil.rmtree(work.path, ignore_errors=True)


def _reason(error: Exception) -> str:
    words = (getattr(error, "stderr", None) or str(error)).strip()
    return (words.splitlines() or ["no reason given"])[-1]

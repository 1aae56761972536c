"""The files of the workflow: where they are, and how a folder outside of a clone gets them."""

import contextlib
import shutil
from pathlib import Path

from cae_seg.errors import UserError

_PACKAGE = Path(__file__).resolve().parent
_IN_WHEEL = _PACKAGE / "project"
PROJECT = _IN_WHEEL if _IN_WHEEL.is_dir() else _PACKAGE.parent
"""The folder of the shipped files: inside the package where a wheel put it, else the clone."""

PARTS = (
    *("Snakefile", "workflow", "config", "configs_local", "tools"),
    *("environment.yml", "requirements.txt"),  # which rules name, and Snakemake reads
)
PROFILES = ("local", "slurm", "demo")
"""Links at the root, where Snakemake looks for `--profile NAME` first."""


def lay_out(folder: Path) -> list[str]:
    """Copy sheets, configs, workflow and profiles into a folder; return the names written.

    Raises:
        UserError: something of that name is there already, or the folder cannot be written.
    """
    names = [*PARTS, *PROFILES]
    present = [name for name in names if (folder / name).is_symlink() or (folder / name).exists()]
    if present:
        raise UserError(
            f"{folder}: already holds {', '.join(present)}; move that away or name another folder"
        )
    new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in PARTS:
            _copy(PROJECT / name, folder / name)
        for name in PROFILES:
            (folder / name).symlink_to(Path("workflow/profiles", name))
    except BaseException as error:
        _remove(folder, names, new)
        if not isinstance(error, OSError):
            raise
        raise UserError(
            f"{folder}: cannot be written ({_reason(error)}); make room or name another folder"
        ) from error
    return names


def _remove(folder: Path, names: list[str], new: bool) -> None:
    """Remove what was written before an error; none of the names was there before."""
    with contextlib.suppress(OSError):
        for path in (folder / name for name in names):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        if new:
            folder.rmdir()


def _reason(error: OSError) -> str:
    """Return why something cannot be copied; copytree collects (source, target, reason)."""
    if isinstance(error, shutil.Error):
        return str(error.args[0][0][2])
    return error.strerror or str(error)


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy2(source, target)

"""Where a number comes from: commit, deciding source files, library versions, device, job."""

import functools
import hashlib
import json
import os
import platform
import re
import subprocess
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from cae_seg.project import PROJECT

PACKAGE = Path(__file__).resolve().parent.parent
# What decides numbers is told by folder: these, without what only makes data ready.
DECIDING = {
    "models": PACKAGE / "models",
    "data": PACKAGE / "data",
    "engine": PACKAGE / "engine",
    "configs_local": PROJECT / "configs_local",
}
PREPARATION = "data/prepare/"
LIBRARIES = {
    "torch": ("torch",),
    "mmseg": ("onedl-mmsegmentation", "mmsegmentation"),
    "mmcv": ("onedl-mmcv", "mmcv"),
    "mmengine": ("onedl-mmengine", "mmengine"),
    "timm": ("timm",),
    "numpy": ("numpy",),
    "opencv": ("opencv-python-headless", "opencv-python"),
}


def code() -> dict[str, Any]:
    """Return commit (None outside of git), whether files differ from it, and the fingerprint."""
    commit = _git("rev-parse", "HEAD")
    dirty = bool(commit and _git("status", "--porcelain", "--untracked-files=no"))
    return {"commit": commit or None, "dirty": dirty, "fingerprint": code_fingerprint()}


@functools.cache
def code_fingerprint() -> str:
    """Hash the source files and library versions that decide a run's numbers."""
    digest = hashlib.sha256()
    for name, path in _deciding_files():
        digest.update(f"{name}\0".encode() + path.read_bytes() + b"\0")
    digest.update(json.dumps(library_versions(), sort_keys=True).encode())
    return digest.hexdigest()


def library_versions() -> dict[str, str | None]:
    """Return the versions of the libraries that decide numbers, None for an absent one."""
    return {name: _version(candidates) for name, candidates in LIBRARIES.items()}


def versions() -> dict[str, str | None]:
    """Return the versions worth noting with a run."""
    own = {"python": platform.python_version(), "cae_seg": _version(("cae-seg",))}
    return {**own, **library_versions()}


def slurm_job() -> str | None:
    """Return the id of the SLURM job that this process runs in."""
    return os.environ.get("SLURM_JOB_ID")


def device_info(kind: str, count: int) -> dict[str, Any]:
    """Describe the devices of a run.

    Args:
        kind: "cuda" or "cpu".
        count: GPUs, or processes on the CPU.
    """
    if kind == "cuda":
        import torch

        return {"type": kind, "name": torch.cuda.get_device_name(), "count": count}
    return {"type": kind, "name": _processor(), "count": count}


def web_address(path: str, commit: str | None) -> str | None:
    """Return where a file of this repository is on the web, None if it is not published there.

    Args:
        path: relative to the repository.
        commit: the version of it.
    """
    found = re.search(
        r"([\w.-]+\.\w+)(?::\d+)?[:/]([\w./~-]+?)(?:\.git)?/?$", _git("remote", "get-url", "origin")
    )
    if not (found and commit and _git("branch", "--remotes", "--contains", commit)):
        return None
    if not _git("ls-tree", "--name-only", commit, "--", path):
        return None
    return f"https://{found[1]}/{found[2]}/blob/{commit}/{path}"


def _deciding_files() -> Iterable[tuple[str, Path]]:
    for room, folder in DECIDING.items():
        for path in sorted(folder.rglob("*.py")):
            name = f"{room}/{path.relative_to(folder).as_posix()}"
            if not name.startswith(PREPARATION):
                yield name, path


def _version(candidates: tuple[str, ...]) -> str | None:
    for name in candidates:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(PACKAGE.parent), *arguments],
            check=True,
            capture_output=True,
            text=True,
            timeout=20,
        )
        return done.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        named = (line for line in lines if line.startswith("model name"))
        return next(named).split(":", 1)[1].strip()
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()

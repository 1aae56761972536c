"""What this machine has, what is missing, and what to do about it."""

import importlib
import shutil
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from cae_seg.site_checks import check_site, check_tracking

PACKAGES = {
    "torch": "torch",
    "torchvision": "torchvision",
    "timm": "timm",
    "onedl-mmengine": "mmengine",
    "onedl-mmcv": "mmcv",
    "onedl-mmsegmentation": "mmseg",
    "opencv-python": "cv2",
    "snakemake": "snakemake",
    "mlflow": "mlflow",
}


def report(sheet: Path) -> tuple[str, bool]:
    """Return the lines of the check and whether everything needed is there.

    Args:
        sheet: the experiments whose jobs SLURM is asked about.
    """
    checks: list[Callable[[], tuple[bool, str]]] = [
        *(lambda name=name: _package(name) for name in PACKAGES),
        _cuda,
        _apex,
        _data,
        _disk,
        check_tracking,
    ]
    results = [*(check() for check in checks), *check_site(sheet)]
    lines = [f"{'ok  ' if good else 'MISSING'} {text}" for good, text in results]
    return "\n".join(lines), all(good for good, _ in results)


def _package(name: str) -> tuple[bool, str]:
    try:
        installed = version(name)
    except PackageNotFoundError:
        return False, f"{name}: not installed; run `make install`"
    try:
        importlib.import_module(PACKAGES[name])
    except Exception as error:
        return False, f"{name} {installed}: does not import ({error}); run `make install`"
    return True, f"{name} {installed}"


def _cuda() -> tuple[bool, str]:
    import torch

    if not torch.cuda.is_available():
        return True, "CUDA: no device; training runs on the CPU (fp32)"
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return True, f"CUDA: {len(names)} × {names[0]} (fp16 by default)"


def _apex() -> tuple[bool, str]:
    try:
        importlib.import_module("apex.amp")
    except ImportError:
        return True, "NVIDIA apex: not there; only `--precision apex` needs it (see README)"
    return True, "NVIDIA apex: there"


def _data() -> tuple[bool, str]:
    manifest = Path("data/ade20k/manifest.json")
    if manifest.exists():
        return True, f"ADE20K: prepared ({manifest})"
    return True, "ADE20K: not prepared yet; the workflow does it, or `cae-seg prepare data`"


def _disk() -> tuple[bool, str]:
    free = shutil.disk_usage(".").free / 1e9
    return free > 20, f"disk: {free:.0f} GB free here (20 GB are needed for the data and one run)"

"""What this machine has, what is missing, and the command that fixes it."""

import importlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from cae_seg.errors import UserError
from cae_seg.run.paths import RunDir
from cae_seg.sheet.reading import Sheet, load_sheet
from cae_seg.sheet.schema import Data
from cae_seg.site_checks import check_site

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
DATA_BYTES = 4e9  # ADE20K: the archive, its files, and room to extract
# Weights that stay, in bytes: four per parameter of the whole segmentor, rounded up.
WEIGHT_BYTES = {"base": 0.7e9, "large": 1.8e9, "tiny": 0.01e9}
STATES = 2 * 3  # of the size of the weights while a run trains: two checkpoints with two moments


@dataclass(frozen=True)
class Check:
    """The outcome of one check.

    Attributes:
        status: "ok", "note" (something works otherwise than on a full machine) or "MISSING".
        text: what was found.
        remedy: the command that fixes it, or nothing.
    """

    status: str
    text: str
    remedy: str = ""

    def __str__(self) -> str:
        remedy = f"\n        fix: {self.remedy}" if self.remedy else ""
        return f"{self.status:7} {self.text}{remedy}"


def report(sheet: Path) -> tuple[str, bool]:
    """Return the lines of the check and whether everything needed is there.

    Args:
        sheet: the experiment sheet that is to be run.
    """
    checks = [*_machine(), *_sheet(sheet)]
    return "\n".join(map(str, checks)), all(check.status != "MISSING" for check in checks)


def _machine() -> Iterator[Check]:
    yield from map(_package, PACKAGES)
    yield _cuda()
    yield _apex()
    yield _slurm()
    yield _mlflow()


def _sheet(path: Path) -> Iterator[Check]:
    try:
        sheet = load_sheet(path)
    except UserError as error:
        yield Check("MISSING", f"sheet: {error}")
        return
    runs = sum(len(row.seeds) for row in sheet.experiments)
    yield Check("ok", f"sheet {path}: {len(sheet.experiments)} experiments, {runs} runs")
    yield from _checkpoints(sheet)
    yield from (_data(sheet, data) for data in sheet.used_data)
    yield _disk(sheet)
    if shutil.which("sbatch") and _slurm().status == "ok":
        for good, text in check_site(sheet):
            yield Check("ok" if good else "MISSING", text, "" if good else "docs/slurm.md")


def _package(name: str) -> Check:
    try:
        installed = version(name)
        importlib.import_module(PACKAGES[name])
    except PackageNotFoundError:
        return Check("MISSING", f"{name}: not installed", "make install")
    except Exception as error:
        return Check("MISSING", f"{name}: does not import ({error})", "make install")
    return Check("ok", f"{name} {installed}")


def _cuda() -> Check:
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        return Check("ok", f"CUDA: {len(names)} × {names[0]} (fp16 by default)")
    if torch.version.cuda is None:
        return Check("note", "CUDA: this PyTorch is built for the CPU; training runs on it (fp32)")
    return Check("note", "CUDA: no GPU found; training runs on the CPU (fp32)")


def _apex() -> Check:
    try:
        importlib.import_module("apex.amp")
    except ImportError:
        return Check("note", "NVIDIA apex: not installed; only `precision: apex` needs it")
    return Check("ok", "NVIDIA apex: installed")


def _slurm() -> Check:
    if shutil.which("sbatch") is None:
        return Check("note", "SLURM: no sbatch on this machine; use --profile local")
    answer = subprocess.run(["sinfo", "--summarize"], capture_output=True, text=True, check=False)
    if answer.returncode:
        return Check("MISSING", f"SLURM: sinfo fails ({answer.stderr.strip()})", "sinfo")
    return Check("ok", "SLURM: the controller answers; use --profile slurm")


def _mlflow() -> Check:
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        return Check("ok", "MLflow: a database under results/ (MLFLOW_TRACKING_URI is not set)")
    if not uri.startswith(("http://", "https://")):
        return Check("ok", "MLflow: a store without a server, from MLFLOW_TRACKING_URI")
    import requests

    try:
        requests.get(f"{uri.rstrip('/')}/health", timeout=10).raise_for_status()
    except requests.RequestException as error:
        reason = type(error).__name__
        return Check("note", f"MLflow: the server does not answer ({reason}); runs are kept for it")
    return Check("ok", "MLflow: the server answers")


def _checkpoints(sheet: Sheet) -> Iterator[Check]:
    """Check each checkpoint of the sheet once."""
    named = (row.checkpoint for row in sheet.experiments if row.has_checkpoint)
    for name in dict.fromkeys(named):
        if "://" in name:
            yield Check("note", f"checkpoint {name}: downloaded by the workflow")
        elif Path(name).is_file():
            yield Check("ok", f"checkpoint {name}: {_size(Path(name).stat().st_size)}")
        elif name.startswith("data/demo/"):
            yield Check("note", f"checkpoint {name}: generated by the workflow")
        else:
            remedy = f"download it (README.md names the place) to {name}, or change {sheet.path}"
            yield Check("MISSING", f"checkpoint {name}: no such file", remedy)


def _data(sheet: Sheet, data: Data) -> Check:
    source = data.source
    if data.manifest.is_file():
        return Check("ok", f"data: prepared ({data.manifest})")
    if "://" in source or Path(source).exists() or source.startswith("data/demo/"):
        kind = "" if data.type == "ade20k" else f" --type {data.type}"
        remedy = f"cae-seg prepare data --source {source} --root {data.root}{kind}"
        return Check("note", "data: not prepared yet; the workflow does it", remedy)
    remedy = f"change `data.source` in {sheet.path}"
    return Check("MISSING", f"data: {source}: no such file or folder", remedy)


def _disk(sheet: Sheet) -> Check:
    """Compare the free space with the weights of all runs and the states of one that trains."""
    weights = [
        _weight_bytes(row.config or row.stem)
        for row in sheet.experiments
        for seed in row.seeds
        if not RunDir(sheet.run_dir(row.name, seed)).finished
    ]
    needed = sum(weights) + STATES * max(weights, default=0.0)
    for data in sheet.used_data:
        prepared = data.manifest.is_file() or data.root.startswith("data/demo")
        needed += 0 if prepared or data.type != "ade20k" else DATA_BYTES
    folders = (sheet.results, *sheet.results.absolute().parents)
    free = shutil.disk_usage(next(path for path in folders if path.is_dir())).free
    text = f"disk: {_size(free)} free, about {_size(needed)} needed by the runs to come"
    if free < needed:
        return Check("MISSING", text, "cae-seg clean, or another `results:` in the sheet")
    return Check("ok", text)


def _weight_bytes(config: str) -> float:
    """Return the size of a run's weights by the size in its config's name; base if unknown."""
    named = (size for name, size in WEIGHT_BYTES.items() if name in config)
    return next(named, WEIGHT_BYTES["base"])


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"

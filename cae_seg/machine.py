"""What this machine has, found without loading torch."""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from cae_seg.errors import UserError


def count_gpus() -> int:
    """Return the number of NVIDIA GPUs that this process may use.

    `CUDA_VISIBLE_DEVICES` narrows them, as it does for CUDA itself.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return _installed_gpus()
    named = [name for name in visible.split(",") if name.strip() not in ("", "-1")]
    return min(len(named), _installed_gpus())


def _installed_gpus() -> int:
    if shutil.which("nvidia-smi"):
        try:
            listed = subprocess.run(
                ["nvidia-smi", "--list-gpus"],
                check=True,
                capture_output=True,
                text=True,
                timeout=60,
            ).stdout
            return sum(line.startswith("GPU ") for line in listed.splitlines())
        except (OSError, subprocess.SubprocessError):
            return 0
    folder = Path("/proc/driver/nvidia/gpus")
    return len(list(folder.iterdir())) if folder.is_dir() else 0


@dataclass(frozen=True)
class Placement:
    """Where a job runs: "cuda" or "cpu", and the number of ranks on each node."""

    kind: str
    ranks: int


def place(device: str, gpus: int | None, present: int, *, slurm: bool = False) -> Placement:
    """Choose device and ranks.

    Args:
        device: "auto", "cuda" or "cpu".
        gpus: GPUs asked for; on "cpu" processes.
        present: GPUs that torch sees.
        slurm: whether SLURM has given GPUs to this job.

    Raises:
        UserError: more GPUs asked than present, or none where they are needed.
    """
    if gpus is not None and gpus < 1:
        raise UserError(f"--gpus {gpus}: ask for at least 1, or use --device cpu")
    if device == "cpu":
        return Placement("cpu", gpus or 1)
    if present == 0:
        _refuse_without_gpu(device, gpus, slurm)
        return Placement("cpu", 1)
    if gpus is not None and gpus > present:
        raise UserError(f"--gpus {gpus}: only {present} present; ask for fewer")
    return Placement("cuda", gpus or 1)


def _refuse_without_gpu(device: str, gpus: int | None, slurm: bool) -> None:
    if device == "cuda":
        raise UserError("--device cuda: torch sees no GPU; check the driver, or use auto")
    if slurm:
        raise UserError(
            "SLURM gave GPUs to this job but torch sees none; check the driver "
            "and that torch was built for CUDA (cae-seg doctor)"
        )
    if gpus is not None:
        raise UserError(
            f"--gpus {gpus}: torch sees no GPU here; check the driver and CUDA_VISIBLE_DEVICES, or "
            "use the CPU with --device cpu"
        )

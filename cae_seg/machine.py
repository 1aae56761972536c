"""What this machine has, found without loading torch."""

import os
import shutil
import subprocess
from pathlib import Path


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

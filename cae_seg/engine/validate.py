"""Refuse what can be seen to be wrong before anything is started or written.

No library is needed here, so that a mistyped name costs a moment and not a queue's wait.
"""

import difflib
import math
from pathlib import Path

from cae_seg.engine.job import EvaluateJob, Job, TrainJob
from cae_seg.errors import UserError
from cae_seg.files import check_output_file, check_writable

CONFIGS = Path("configs_local")


def check_job(job: Job) -> None:
    """Check the paths and numbers of a job.

    Raises:
        UserError: a file is missing, a number is none, or a folder cannot be written.
    """
    check_config(job.config)
    if job.data is not None and not job.data.is_file():
        raise UserError(f"{job.data}: no such manifest; make it with `cae-seg prepare data`")
    if job.nodes < 1:
        raise UserError(f"--nodes {job.nodes}: ask for at least 1")
    if job.seed < 0:
        raise UserError(f"--seed {job.seed}: must not be negative")
    if isinstance(job, TrainJob):
        _check_train(job)
    else:
        _check_evaluate(job)


def check_config(path: Path) -> None:
    """Check that a config file is there.

    Raises:
        UserError: it is not; the message names the nearest.
    """
    if path.is_file():
        return
    known = sorted(CONFIGS.rglob("*.py")) or sorted(path.parent.glob("*.py"))
    known = [found for found in known if "_base_" not in found.parts]
    names = {found.stem: found for found in known}
    close = difflib.get_close_matches(path.stem, names, n=3, cutoff=0.5) or list(names)[:3]
    hint = "; nearest: " + ", ".join(str(names[name]) for name in close) if close else ""
    raise UserError(f"{path}: no such config{hint}")


def parse_learning_rate(text: str) -> float:
    """Read a learning rate.

    Raises:
        UserError: it is no positive number.
    """
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise UserError(f"--learning-rate {text}: not a positive number; write e.g. 1e-4")
    return value


def check_checkpoint(path: Path) -> None:
    """Check that a checkpoint file is there.

    Raises:
        UserError: it is not.
    """
    if not path.is_file():
        kind = "a folder, not a checkpoint file" if path.is_dir() else "no such checkpoint"
        raise UserError(f"{path}: {kind}; name the downloaded file")


def _check_train(job: TrainJob) -> None:
    if job.learning_rate is not None:
        parse_learning_rate(job.learning_rate)
    if job.pretrained is not None:
        check_checkpoint(job.pretrained)
    for name, value in (("images-per-gpu", job.images_per_gpu), ("time-budget", job.time_budget)):
        if value is not None and value <= 0:
            raise UserError(f"--{name} {value}: must be positive")
    check_writable(job.work_dir)
    check_output_file(job.run_file)


def _check_evaluate(job: EvaluateJob) -> None:
    check_checkpoint(job.weights)
    if job.out is not None:
        if job.out.suffix not in (".json", ".pkl"):
            raise UserError(f"--out {job.out}: must end in .json (metrics) or .pkl (label maps)")
        check_output_file(job.out)
    if job.show_dir is not None:
        check_writable(job.show_dir)

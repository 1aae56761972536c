"""Refuse what can be seen to be wrong before anything is started or written.

No library is needed here, so that a mistyped name costs a moment and not a queue's wait.
"""

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from cae_seg.config_files import find_config
from cae_seg.data.prepare.index import check_unchanged
from cae_seg.data.prepare.manifest import load_manifest
from cae_seg.engine.job import EvaluateJob, Job, TrainJob
from cae_seg.errors import UserError
from cae_seg.files import check_output_file, check_writable


def validate_job(job: Job) -> None:
    """Check the paths and numbers of a job.

    Raises:
        UserError: a file is missing, a number is none, or a folder cannot be written.
    """
    find_config(job.config)
    if isinstance(job, TrainJob):
        check_conflicts(job.cfg_options, vars(job))
    if job.data is not None:
        check_unchanged(load_manifest(job.data), job.data)
    if job.nodes < 1:
        raise UserError(f"--nodes {job.nodes}: ask for at least 1")
    if job.seed < 0:
        raise UserError(f"--seed {job.seed}: must not be negative")
    if isinstance(job, TrainJob):
        _check_train(job)
    else:
        _check_evaluate(job)


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


# Arguments of a job that replace keys of its config: pattern of the keys, field of the job.
_REPLACED_BY = [
    (r"optim_wrapper\.optimizer\.lr", "learning_rate"),
    (r"model\.(pretrained|backbone\.(init_cfg|pretrained)(\..*)?)", "pretrained"),
    (r"precision", "precision"),
    (r".*\.data_root", "data"),
    (r"total_batch_size", "batch_size"),
]


def check_conflicts(options: Iterable[str], given: Mapping[str, Any]) -> None:
    """Refuse options for keys that another argument replaces.

    Args:
        options: dotted keys.
        given: arguments of the job by field; None and "auto" replace nothing.

    Raises:
        UserError: naming the key and the argument.
    """
    for key in options:
        for pattern, field in _REPLACED_BY:
            if re.fullmatch(pattern, key) and given.get(field) not in (None, "auto"):
                name = field.replace("_", "-")
                raise UserError(f"{key}: is replaced by --{name}; leave one of the two out")


# Top-level keys that an evaluation reads; keys of the weights that training starts from.
_READ_BY_EVALUATION = {
    "acceleration",
    "custom_imports",
    "data_preprocessor",
    "default_scope",
    "env_cfg",
    "evaluation_precision",
    "known_keys",
    "log_level",
    "log_processor",
    "model",
    "tta_model",
    "tta_pipeline",
    "val_dataloader",
    "val_evaluator",
    "visualizer",
}
_START_WEIGHTS = r"model\.(pretrained|(\w+\.)?init_cfg(\..*)?)"


def _refuse_options_of_training(options: Iterable[str]) -> None:
    """Refuse options that an evaluation would not read.

    Raises:
        UserError: naming the key.
    """
    for key in options:
        if key.split(".")[0] not in _READ_BY_EVALUATION or re.fullmatch(_START_WEIGHTS, key):
            raise UserError(f"{key}: only training reads it; leave it out of an evaluation")


def _check_train(job: TrainJob) -> None:
    if job.learning_rate is not None:
        parse_learning_rate(job.learning_rate)
    if job.pretrained is not None:
        check_checkpoint(job.pretrained)
    for name, value in (("images-per-gpu", job.images_per_gpu), ("time-budget", job.time_budget)):
        if value is not None and value <= 0:
            raise UserError(f"--{name} {value}: must be positive")
    job.knobs  # noqa: B018  (refuses numbers that are not positive)
    check_writable(job.work_dir)
    check_output_file(job.run_file)


def _check_evaluate(job: EvaluateJob) -> None:
    check_checkpoint(job.weights)
    _refuse_options_of_training(job.cfg_options)
    if job.out is not None:
        if job.out.suffix not in (".json", ".pkl"):
            raise UserError(f"--out {job.out}: must end in .json (metrics) or .pkl (label maps)")
        check_output_file(job.out)
    if job.show_dir is not None:
        check_writable(job.show_dir)

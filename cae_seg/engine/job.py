"""What a person asks for, as plain data: one training run, one evaluation.

Nothing heavy is imported here: the console script builds a job before torch is loaded, and ranks
receive theirs as text in an environment variable.
"""

import ast
import dataclasses
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cae_seg.errors import UserError
from cae_seg.run.paths import RunDir

DONE, CRASHED, USER_ERROR, STOPPED = 0, 1, 2, 75
"""Exit statuses; 75 is sysexits' "try again": stopped cleanly, nothing is lost."""


@dataclass(frozen=True)
class Knobs:
    """What a run changes in its recipe; None keeps the config's value.

    Args:
        iterations: length of the training.
        batch_size: images of one iteration over all GPUs.
        crop_size: height and width of the training crops and of the windows of a sliding test.

    Raises:
        UserError: a number is not positive.
    """

    iterations: int | None = None
    batch_size: int | None = None
    crop_size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        for name, value in self.changes().items():
            numbers = value if isinstance(value, tuple) else (value,)
            if any(number < 1 for number in numbers):
                text = " ".join(str(number) for number in numbers)
                raise UserError(f"--{name.replace('_', '-')} {text}: must be positive")

    def changes(self) -> dict[str, Any]:
        """Return the knobs that are set."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class TrainJob:
    """One fine-tuning run.

    Args:
        config: mmengine config file.
        work_dir: resumable state of the run; belongs to one run alone.
        out: metadata of the finished run; `work_dir/run.json` unless given.
        name: the experiment's name in the sheet.
        seed: decides all randomness of the run.
        gpus: ranks on each node (with `device="cpu"`: processes on the CPU).
        device: "auto", "cuda" or "cpu".
        precision: "auto", "fp16", "bf16", "fp32" or "apex".
        learning_rate: as text, replaces the config's.
        pretrained: checkpoint of the backbone, replaces the config's.
        data: manifest of the prepared data set.
        deterministic: the same bits on CUDA too.
        cfg_options: dotted config keys and their new values.
        workers: loader processes a rank.
        images_per_gpu: images that fit at once; more are accumulated.
        time_budget: minutes after which the run has stopped cleanly.
        nodes: machines, found through SLURM.
        iterations: length of the run, replaces the config's with all that depends on it.
        batch_size: images of an iteration over all GPUs, replaces the config's.
        crop_size: height and width of crops and test windows, replaces the config's.
        lock_wait: seconds to wait for another writer of `work_dir` to end; unless told, as long as
            it takes, and half a minute in a SLURM job, which would hold its GPUs meanwhile.
    """

    config: Path
    work_dir: Path
    out: Path | None = None
    name: str | None = None
    seed: int = 0
    gpus: int | None = None
    device: str = "auto"
    precision: str = "auto"
    learning_rate: str | None = None
    pretrained: Path | None = None
    data: Path | None = None
    deterministic: bool = False
    cfg_options: dict[str, Any] = field(default_factory=dict)
    workers: int | None = None
    images_per_gpu: int | None = None
    time_budget: float | None = None
    nodes: int = 1
    iterations: int | None = None
    batch_size: int | None = None
    crop_size: tuple[int, int] | None = None
    lock_wait: float | None = None

    @property
    def knobs(self) -> Knobs:
        """What the run changes in its recipe."""
        return Knobs(self.iterations, self.batch_size, self.crop_size)

    @property
    def run_file(self) -> Path:
        """Where the metadata of the finished run goes."""
        return self.out or RunDir(self.work_dir).run_file


@dataclass(frozen=True, kw_only=True)
class EvaluateJob:
    """One evaluation of fine-tuned weights on the validation images.

    Args:
        config: mmengine config file of the model.
        weights: fine-tuned checkpoint, ours or a published one.
        data: manifest of the prepared data set.
        gpus: ranks (with `device="cpu"`: processes on the CPU).
        device: "auto", "cuda" or "cpu".
        out: metrics (`.json`) or label maps (`.pkl`).
        show_dir: folder for a painting of every prediction.
        aug_test: average over flips and scales.
        cfg_options: dotted config keys and their new values.
        name: the experiment's name in the sheet.
        seed: of the run that made the weights; noted in the metrics.
        workers: loader processes a rank.
    """

    config: Path
    weights: Path
    data: Path | None = None
    gpus: int | None = None
    device: str = "auto"
    out: Path | None = None
    show_dir: Path | None = None
    aug_test: bool = False
    cfg_options: dict[str, Any] = field(default_factory=dict)
    name: str | None = None
    seed: int = 0
    workers: int | None = None
    nodes: int = 1

    @property
    def knobs(self) -> Knobs:
        """An evaluation changes nothing in the recipe of its model."""
        return Knobs()


Job = TrainJob | EvaluateJob
_KINDS = {kind.__name__: kind for kind in (TrainJob, EvaluateJob)}


def encode(job: Job) -> str:
    """Write a job as text that `decode` reads back, tuples in its options included."""
    values = dataclasses.asdict(job)
    plain = {key: str(v) if isinstance(v, Path) else v for key, v in values.items()}
    return repr((type(job).__name__, plain))


def decode(text: str) -> Job:
    """Read a job that `encode` wrote."""
    kind, values = ast.literal_eval(text)
    cls = _KINDS[kind]
    paths = {f.name for f in dataclasses.fields(cls) if "Path" in str(f.type)}
    return cls(**{k: Path(v) if k in paths and v is not None else v for k, v in values.items()})

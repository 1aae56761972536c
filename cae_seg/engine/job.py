"""What a person asks for, as plain data: one training run, one evaluation.

Nothing heavy is imported here: the console script builds a job before torch is loaded, and ranks
receive theirs as text in an environment variable.
"""

import ast
import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

DONE, CRASHED, USER_ERROR, STOPPED = 0, 1, 2, 75
"""Exit statuses; 75 is sysexits' "try again": stopped in good order, nothing is lost."""


@dataclass(frozen=True, kw_only=True)
class TrainJob:
    """One fine-tuning run.

    Args:
        config: mmengine config file.
        work_dir: resumable state of the run; belongs to one run alone.
        out: record of the finished run; `work_dir/run.json` unless given.
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
        time_budget: minutes after which the run has stopped in good order.
        nodes: machines, found through SLURM.
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
    lock_wait: float | None = None

    @property
    def run_file(self) -> Path:
        """Where the record of the finished run goes."""
        return self.out or self.work_dir / "run.json"


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

"""What a person asks for, as plain data: one training run, one evaluation.

The fields of a job are the options of its command, with type and help: they are written here alone.
Nothing heavy is imported here: the console script builds a job before torch is loaded, and ranks
receive theirs as text in an environment variable.
"""

import argparse
import ast
import dataclasses
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from cae_seg.arguments import (
    SEED,
    config_options,
    number,
    output_file,
    output_folder,
    whole_number,
)
from cae_seg.errors import UserError
from cae_seg.run.paths import RunDir

T = TypeVar("T", bound="TrainJob | EvaluateJob")

RECIPE = ("changes of the recipe", "each sets every place of the config that depends on it")
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


def _option(help_: str, *flags: str, group: tuple[str, str] | None = None, **argument: Any) -> Any:
    """Return metadata of a field: how its option or positional argument is parsed and explained."""
    return {"flags": flags, "group": group, "argument": {"help": help_, **argument}}


@dataclass(frozen=True, kw_only=True)
class _CommonJob:
    """What both commands take."""

    config: Path = field(
        metadata=_option("a path, a shipped config's stem, or mmseg::FAMILY/NAME.py", type=Path)
    )
    data: Path | None = field(
        default=None,
        metadata=_option("manifest of prepared data, replaces the config's data_root", type=Path),
    )
    gpus: int | None = field(
        default=None,
        metadata=_option(
            "GPUs on each machine (default: 1 if there is any); with --device cpu: processes",
            type=whole_number(1, 10_000),
        ),
    )
    nodes: int = field(
        default=1,
        metadata=_option("machines, found through SLURM", type=whole_number(1, 10_000)),
    )
    device: str = field(
        default="auto",
        metadata=_option(
            "cpu with --gpus N: N processes on the CPU", choices=["auto", "cuda", "cpu"]
        ),
    )
    workers: int | None = field(
        default=None,
        metadata=_option("loader processes per rank", type=whole_number(0, 1000)),
    )
    name: str | None = field(default=None, metadata=_option("experiment, as the sheet names it"))
    seed: int = field(
        default=0, metadata=_option("of all randomness; noted in the results", type=SEED)
    )
    cfg_options: dict[str, Any] = field(
        default_factory=dict,
        metadata=_option(
            "settings that replace those of the config, e.g. model.pretrained=FILE",
            "--options",
            nargs="+",
            action="extend",
            metavar="KEY=VALUE",
        ),
    )


@dataclass(frozen=True, kw_only=True)
class TrainJob(_CommonJob):
    """One fine-tuning run; the metadata of each field says what it is."""

    work_dir: Path = field(
        metadata=_option(
            "resumable state of the run, of one run alone",
            "--work-dir",
            type=output_folder,
            required=True,
        )
    )
    out: Path | None = field(
        default=None,
        metadata=_option(
            "metadata of the finished run (default: run.json in the work dir)", type=output_file
        ),
    )
    pretrained: Path | None = field(
        default=None, metadata=_option("checkpoint of the backbone", type=Path)
    )
    learning_rate: str | None = field(default=None, metadata=_option("replaces the config's"))
    precision: str = field(
        default="auto",
        metadata=_option(
            "of training (default: auto)", choices=["auto", "fp16", "bf16", "fp32", "apex"]
        ),
    )
    deterministic: bool = field(
        default=False, metadata=_option("same numbers on CUDA too", action="store_true")
    )
    images_per_gpu: int | None = field(
        default=None,
        metadata=_option("images that fit at once (accumulates)", type=whole_number(1, 10_000)),
    )
    time_budget: float | None = field(
        default=None,
        metadata=_option("stop in time, resumable", type=number(0, included=False), metavar="MIN"),
    )
    lock_wait: float | None = field(
        default=None,
        metadata=_option(
            "seconds to wait for another process using the work dir (default: forever; 30 in a "
            "SLURM job)",
            type=number(0),
            metavar="SECONDS",
        ),
    )
    iterations: int | None = field(
        default=None,
        metadata=_option(
            "length of the run; schedules keep their shape",
            group=RECIPE,
            type=whole_number(1, 10**9),
            metavar="N",
        ),
    )
    batch_size: int | None = field(
        default=None,
        metadata=_option(
            "images per iteration over all GPUs",
            group=RECIPE,
            type=whole_number(1, 10**6),
            metavar="N",
        ),
    )
    crop_size: tuple[int, int] | None = field(
        default=None,
        metadata=_option(
            "of training crops and sliding test windows",
            group=RECIPE,
            type=whole_number(1, 100_000),
            nargs=2,
            metavar=("HEIGHT", "WIDTH"),
        ),
    )

    @property
    def knobs(self) -> Knobs:
        """What the run changes in its recipe."""
        return Knobs(self.iterations, self.batch_size, self.crop_size)

    @property
    def run_file(self) -> Path:
        """Where the metadata of the finished run goes."""
        return self.out or RunDir(self.work_dir).run_file


@dataclass(frozen=True, kw_only=True)
class EvaluateJob(_CommonJob):
    """One evaluation of fine-tuned weights on the validation images."""

    weights: Path = field(
        metadata=_option("fine-tuned checkpoint, ours or a published one", type=Path)
    )
    aug_test: bool = field(
        default=False, metadata=_option("flips and several scales", action="store_true")
    )
    out: Path | None = field(
        default=None, metadata=_option("metrics (.json) or label maps (.pkl)", type=output_file)
    )
    show_dir: Path | None = field(
        default=None,
        metadata=_option("draw every prediction into this folder", type=output_folder),
    )

    @property
    def knobs(self) -> Knobs:
        """An evaluation changes nothing in the recipe of its model."""
        return Knobs()


@dataclass(frozen=True)
class JointJob:
    """Training runs over one frozen backbone, in one process and one pass of the backbone.

    Args:
        runs: what to train; each has its own work dir, and leaves there what it leaves alone.
        keep_going: whether a run that fails by a mistake of the user's is left to its note in the
            work dir, as long as another one succeeds.
        report: where to write how each run has ended, once all have.

    Raises:
        UserError: the runs want different machines, or the same work dir.
    """

    runs: tuple[TrainJob, ...]
    keep_going: bool = False
    report: Path | None = None

    def __post_init__(self) -> None:
        for name in ("device", "gpus", "nodes", "deterministic"):
            if len(found := {getattr(run, name) for run in self.runs}) > 1:
                values = ", ".join(sorted(map(str, found)))
                raise UserError(f"--{name}: {values}: runs of one command need the same")
        folders = [run.work_dir.absolute() for run in self.runs]
        for folder in folders:
            if folders.count(folder) > 1:
                raise UserError(f"--work-dir {folder}: is given to two runs; each needs its own")

    @property
    def device(self) -> str:
        """Of all runs."""
        return self.runs[0].device

    @property
    def gpus(self) -> int | None:
        """On each machine."""
        return self.runs[0].gpus

    @property
    def nodes(self) -> int:
        """Machines."""
        return self.runs[0].nodes

    @property
    def deterministic(self) -> bool:
        """The same numbers on CUDA too."""
        return self.runs[0].deterministic


def add_options(parser: argparse.ArgumentParser, kind: type["TrainJob | EvaluateJob"]) -> None:
    """Add an argument for each field of a job: a positional one where there is no default."""
    groups: dict[tuple[str, str], Any] = {}
    for job_field in dataclasses.fields(kind):
        described = job_field.metadata
        argument, flags, group = dict(described["argument"]), described["flags"], described["group"]
        to: Any = parser
        if group is not None:
            to = groups[group] = groups.get(group) or parser.add_argument_group(*group)
        is_optional = job_field.default is not dataclasses.MISSING or flags
        if not is_optional:
            to.add_argument(job_field.name, **argument)
            continue
        default = [] if job_field.name == "cfg_options" else job_field.default
        names = dict.fromkeys((f"--{job_field.name.replace('_', '-')}", *flags))
        to.add_argument(*names, dest=job_field.name, default=default, **argument)


def job_of(kind: type[T], options: argparse.Namespace) -> T:
    """Return the job that parsed options describe: every field has its option.

    Raises:
        UserError: a pair of `cfg_options` is malformed.
    """
    values = {f.name: getattr(options, f.name) for f in dataclasses.fields(kind)}
    values["cfg_options"] = config_options(values["cfg_options"])
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    return kind(**values)


Job = TrainJob | EvaluateJob | JointJob
_KINDS = {kind.__name__: kind for kind in (TrainJob, EvaluateJob)}


def encode(job: Job) -> str:
    """Write a job as text that `decode` reads back, tuples in its options included."""
    if isinstance(job, JointJob):
        runs, report = [encode(run) for run in job.runs], job.report and str(job.report)
        return repr((JointJob.__name__, (runs, job.keep_going, report)))
    values = dataclasses.asdict(job)
    plain = {key: str(v) if isinstance(v, Path) else v for key, v in values.items()}
    return repr((type(job).__name__, plain))


def decode(text: str) -> Job:
    """Read a job that `encode` wrote."""
    kind, values = ast.literal_eval(text)
    if kind == JointJob.__name__:
        runs, keep_going, report = values
        return JointJob(tuple(map(decode, runs)), keep_going, report and Path(report))
    cls = _KINDS[kind]
    paths = {f.name for f in dataclasses.fields(cls) if "Path" in str(f.type)}
    return cls(**{k: Path(v) if k in paths and v is not None else v for k, v in values.items()})

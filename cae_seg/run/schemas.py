"""The shape of a run's JSON files, checked when they are read: they may be damaged or edited."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, ValidationError

from cae_seg.errors import UserError
from cae_seg.files import read_json_object

Percent = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False, strict=True)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[StrictInt, Field(ge=0, le=10**12)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False, strict=True)]
ROUNDING = 0.01  # percent; between the mean of the classes and the mIoU next to them


class _Shape(BaseModel):
    """A mapping whose named keys are checked; others may be there."""

    model_config = ConfigDict(extra="allow")


class Code(_Shape):
    """Which code a number comes from."""

    commit: str | None = None
    dirty: StrictBool | None = None
    fingerprint: str | None = None


class Device(_Shape):
    """By what a run was trained."""

    type: str
    name: str
    count: Count


class Batch(_Shape):
    """How the images of an iteration were shared."""

    global_batch: Count


class Data(_Shape):
    """On what a run was trained."""

    fingerprint: str | None = None
    root: str | None = None
    images: dict[str, Any] = {}


class Normalisation(_Shape):
    """By what the channels of an image are shifted and divided."""

    mean: list[float]
    std: list[float]


class WeightsFile(_Shape):
    """The final weights."""

    path: str
    sha256: str


class RunMetadata(_Shape):
    """`run.json` and `run_metadata.json`: what was trained, with what."""

    experiment: str | None = None
    seed: Count
    identity: str
    config: str
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    iterations: Count
    precision: str | None = None
    device: Device | None = None
    batch: Batch | None = None
    code: Code | None = None
    checkpoint: dict[str, Any] | None = None
    data: Data | None = None
    crop: list[int] | None = None
    normalisation: Normalisation | None = None
    accelerations: list[str] = []
    versions: dict[str, Any] | None = None
    seconds: Seconds = 0
    slurm_job_ids: list[str | int] = []
    weights: WeightsFile | None = None
    gpu_hours: Seconds | None = None
    evaluations: list[dict[str, Any]] = []


class JointRun(_Shape):
    """How one of several runs that trained together has ended."""

    work_dir: str
    identity: str | None = None
    error: str | None = None


class JointReport(_Shape):
    """What `cae-seg train --report` writes of all of them."""

    runs: list[JointRun]


class ClassScore(_Shape):
    """One class of an evaluation; null where it does not occur."""

    name: str
    IoU: Percent | None
    Acc: Percent | None


class Metrics(_Shape):
    """`metrics.json` of one seed: the final evaluation."""

    experiment: str | None = None
    seed: Count
    mIoU: Percent
    mAcc: Percent
    aAcc: Percent
    per_class: list[ClassScore]
    images: Annotated[StrictInt, Field(ge=1)]
    weights_sha256: Digest
    data_fingerprint: str | None = None
    aug_test: StrictBool = False
    code: Code | None = None


def read_checked(path: Path, model: type[BaseModel], remedy: str) -> dict[str, Any]:
    """Read a JSON file and return its content, once it has the shape of `model`.

    A key whose value is null is left out, as if it were not there.

    Args:
        path: the file.
        model: its shape.
        remedy: what to do about a wrong one, for the message.

    Raises:
        UserError: no JSON, or a key that is missing or of the wrong kind, which is named.
    """
    value = read_json_object(path)
    try:
        model.model_validate(value)
    except (ValidationError, RecursionError) as error:
        raise UserError(f"{path}: {_problem(error)}; {remedy}") from error
    return {key: part for key, part in value.items() if part is not None}


def is_metrics(value: Any) -> bool:
    """Say whether a value has the shape of `metrics.json`."""
    with contextlib.suppress(ValidationError, RecursionError):
        Metrics.model_validate(value)
        return True
    return False


def doubts_about(metrics: dict[str, Any], experiment: str, seed: int) -> list[str]:
    """Return why the scores of `metrics.json` may not be those of a run; nothing if all agrees."""
    scores = [line["IoU"] for line in metrics["per_class"] if line["IoU"] is not None]
    checks: list[tuple[str, Callable[[], bool]]] = [
        (
            f"metrics of the experiment {metrics.get('experiment')!r}",
            lambda: metrics.get("experiment") not in (None, experiment),
        ),
        (f"metrics of seed {metrics['seed']}", lambda: metrics["seed"] != seed),
        (
            "mIoU is not the mean of its classes",
            lambda: not scores or abs(sum(scores) / len(scores) - metrics["mIoU"]) > ROUNDING,
        ),
    ]
    return [text for text, found in checks if found()]


def _problem(error: ValidationError | RecursionError) -> str:
    if isinstance(error, RecursionError):
        return "is nested too deep"
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    return f"{place}: {first['msg'][0].lower()}{first['msg'][1:]}"

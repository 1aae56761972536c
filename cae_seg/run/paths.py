"""The folder of one training run: where its files are, and what tracking and results read there.

The engine writes it; nothing here does. A run made by the workflow keeps its declared files next to
`work/`; one made by `tools/dist_train.sh` keeps everything in the one folder it was given.
"""

import json
import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cae_seg.errors import UserError
from cae_seg.files import read_text, sha256_file

logger = logging.getLogger(__name__)

WORK, RUN, METADATA, METRICS = "work", "run.json", "run_metadata.json", "metrics.json"


@dataclass(frozen=True)
class MetricsHistory:
    """What a run logged while it trained, one entry an iteration.

    An iteration that was trained twice (a crash, then a resume from an earlier checkpoint) counts
    once, with its last values.

    Attributes:
        train: iteration → losses, learning rate, speed; in order of iteration.
        evaluations: iteration → mIoU, mAcc, aAcc in percent; in order of iteration.
        system: iteration → load of CPU, memory, disk, network, GPUs; in order of iteration.
        events: start, resume, checkpoint, stop, finish, warning; in order of time.
        begun: Unix time of the very first line, which stays through every resume.
    """

    train: dict[int, dict[str, Any]] = field(default_factory=dict)
    evaluations: dict[int, dict[str, Any]] = field(default_factory=dict)
    system: dict[int, dict[str, Any]] = field(default_factory=dict)
    events: list[dict[str, Any]] = field(default_factory=list)
    begun: float | None = None

    @property
    def last_time(self) -> float | None:
        """Unix time of the youngest line."""
        kinds = (self.train, self.evaluations, self.system)
        lines = [*self.events, *(line for kind in kinds for line in kind.values())]
        return max((line["time"] for line in lines), default=None)


def read_history(path: Path) -> MetricsHistory:
    """Read a `metrics.jsonl`; a missing or unreadable file is an empty history.

    Lines torn by a crash are skipped, wherever they are: a resumed run appends after them.
    """
    by_kind: dict[str, dict[int, dict[str, Any]]] = {"train": {}, "eval": {}, "system": {}}
    events, begun = [], None
    for line in _lines(path):
        begun = line["time"] if begun is None else begun
        if line["kind"] == "event":
            events.append(line)
        else:
            by_kind[line["kind"]][line["iteration"]] = line
    train, evaluations, system = (dict(sorted(lines.items())) for lines in by_kind.values())
    return MetricsHistory(train, evaluations, system, events, begun)


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    if not path.exists():
        return
    try:
        text = read_text(path, errors="replace")
    except UserError as error:
        logger.warning("%s", error)
        return
    for line in text.splitlines():
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict) and _is_line(value):
            yield value


def _is_line(value: dict[str, Any]) -> bool:
    """Say whether an object has what every line of its kind has."""
    counted = dict.fromkeys(("train", "eval", "system"), ("iteration", int))
    needed = {"event": ("event", str), **counted}
    kind = value.get("kind")
    if not isinstance(kind, str) or kind not in needed:
        return False
    key, expected = needed[kind]
    return _is_number(value.get("time")) and type(value.get(key)) is expected


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


class WorkFiles:
    """Paths of a run's resumable state.

    Args:
        path: the work dir.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.metadata_file = self.path / METADATA
        self.summary_file = self.path / "summary.json"
        self.metrics_log = self.path / "metrics.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.weights = self.path / "weights.pth"
        self.config = self.path / "config.py"
        self.visualizations = self.path / "visualizations"
        self.log = self.path / "train.log"
        self.lock = self.path / "writer.lock"

    def scores_file(self, *, aug_test: bool) -> Path:
        """Return where the final evaluation is kept, apart from the output of the workflow."""
        return self.path / ("scores_aug_test.json" if aug_test else "scores.json")


@dataclass(frozen=True)
class RunDir:
    """The folder of one run."""

    path: Path

    @property
    def work(self) -> WorkFiles:
        """The files of the resumable state."""
        inner = self.path / WORK
        return WorkFiles(inner if inner.is_dir() else self.path)

    @property
    def run_file(self) -> Path:
        """The metadata of the finished run."""
        return self.path / RUN

    @property
    def augmented_file(self) -> Path:
        """The evaluation with flips and several scales, where there is one."""
        return self.path / "metrics_aug_test.json"

    @property
    def metrics_file(self) -> Path:
        """The final evaluation."""
        return self.path / METRICS

    @property
    def finished(self) -> bool:
        """Whether training came to its end."""
        return self.run_file.is_file()

    @property
    def exists(self) -> bool:
        """Whether a run was ever started here."""
        return self.finished or self.work.metadata_file.is_file()

    def error_file(self, rule: str) -> Path:
        """Return where a rule of the workflow keeps the message of a user's mistake."""
        return self.path / f"error_{rule}.txt"

    @property
    def errors(self) -> list[Path]:
        """Messages of users' mistakes that ended jobs of the last start."""
        return sorted(self.path.glob("error_*.txt"))

    def metadata(self) -> dict[str, Any]:
        """Return `run.json`, or `run_metadata.json` of a run that is not finished.

        Raises:
            UserError: there is neither, or it has another shape.
        """
        from cae_seg.run.schemas import RunMetadata, read_checked  # loads pydantic

        path = self.run_file if self.finished else self.work.metadata_file
        return read_checked(path, RunMetadata, "restore the file, or delete it and train again")

    def metrics(self) -> dict[str, Any] | None:
        """Return the final evaluation, if there is one.

        Raises:
            UserError: the file has another shape, or a score outside of 0 to 100.
        """
        return self._metrics(self.metrics_file)

    def augmented(self) -> dict[str, Any] | None:
        """Return the evaluation with flips and several scales, if there is one.

        Raises:
            UserError: as `metrics`.
        """
        return self._metrics(self.augmented_file)

    def _metrics(self, path: Path) -> dict[str, Any] | None:
        from cae_seg.run.schemas import Metrics, read_checked

        if not path.is_file():
            return None
        return read_checked(path, Metrics, "delete the file and evaluate again")

    def changed_weights(self, metrics: dict[str, Any]) -> bool:
        """Say whether the weights are no longer those that were evaluated.

        They are hashed only where they are younger than the evaluation: whole sweeps are tabled.
        """
        weights, evaluated = self.work.weights, self.metrics_file
        if not weights.is_file() or weights.stat().st_mtime_ns <= evaluated.stat().st_mtime_ns:
            return False
        return sha256_file(weights) != metrics["weights_sha256"]

    def history(self) -> MetricsHistory:
        """Read what was logged during training."""
        return read_history(self.work.metrics_log)


def open_run(path: Path) -> RunDir:
    """Return the run in `path`, which may also be the `work` folder of a run."""
    path = Path(path)
    outer = RunDir(path.parent)
    return outer if path.name == WORK and outer.finished else RunDir(path)


def find_runs(folder: Path) -> list[RunDir]:
    """Return every run in or below `folder`, in the order of their paths."""
    folders = set()
    for name in (RUN, METADATA):
        for path in Path(folder).rglob(name):
            folders.add(path.parent.parent if path.parent.name == WORK else path.parent)
    return [RunDir(path) for path in sorted(folders)]

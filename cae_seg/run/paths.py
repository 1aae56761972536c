"""The folder of one training run, as tracking and results read it.

The engine writes it; nothing here does. A run made by the workflow keeps its declared files beside
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
from cae_seg.run.schemas import Metrics, RunMetadata, read_checked

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Record:
    """What a run logged while it trained, one entry an iteration.

    An iteration that was trained twice (a crash, then a resume from an earlier checkpoint) counts
    once, with its last values.

    Attributes:
        train: iteration → losses, learning rate, speed; in order of iteration.
        evaluations: iteration → mIoU, mAcc, aAcc in percent; in order of iteration.
        events: start, resume, checkpoint, stop, finish, warning; in order of time.
        begun: Unix time of the very first line, which stays through every resume.
    """

    train: dict[int, dict[str, Any]] = field(default_factory=dict)
    evaluations: dict[int, dict[str, Any]] = field(default_factory=dict)
    events: list[dict[str, Any]] = field(default_factory=list)
    begun: float | None = None

    @property
    def last_time(self) -> float | None:
        """Unix time of the youngest line."""
        times = [line["time"] for line in (*self.train.values(), *self.evaluations.values())]
        return max([*times, *(event["time"] for event in self.events)], default=None)


def read_record(path: Path) -> Record:
    """Read a `record.jsonl`; a missing or unreadable file is an empty record.

    Lines torn by a crash are skipped, wherever they are: a resumed run appends after them.
    """
    train, evaluations, events, begun = {}, {}, [], None
    for line in _lines(path):
        begun = line["time"] if begun is None else begun
        if line["kind"] == "event":
            events.append(line)
        else:
            (train if line["kind"] == "train" else evaluations)[line["iteration"]] = line
    return Record(dict(sorted(train.items())), dict(sorted(evaluations.items())), events, begun)


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
    needed = {"event": ("event", str), "train": ("iteration", int), "eval": ("iteration", int)}
    kind = value.get("kind")
    if not isinstance(kind, str) or kind not in needed:
        return False
    key, expected = needed[kind]
    return _is_number(value.get("time")) and type(value.get(key)) is expected


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


@dataclass(frozen=True)
class RunFolder:
    """Where the files of one run lie."""

    path: Path

    @property
    def work(self) -> Path:
        """The folder of the resumable state."""
        inner = self.path / "work"
        return inner if inner.is_dir() else self.path

    @property
    def finished(self) -> bool:
        """Whether training came to its end."""
        return (self.path / "run.json").is_file()

    @property
    def exists(self) -> bool:
        """Whether a run was ever started here."""
        return self.finished or (self.work / "facts.json").is_file()

    def error_file(self, rule: str) -> Path:
        """Return where a rule of the workflow keeps the message of a user's mistake."""
        return self.path / f"error_{rule}.txt"

    @property
    def errors(self) -> list[Path]:
        """Messages of users' mistakes that ended jobs of the last start."""
        return sorted(self.path.glob("error_*.txt"))

    def facts(self) -> dict[str, Any]:
        """Return `run.json`, or `facts.json` of a run that is not finished.

        Raises:
            UserError: there is neither, or it has another shape.
        """
        path = self.path / "run.json" if self.finished else self.work / "facts.json"
        return read_checked(path, RunMetadata, "restore the file, or delete it and train again")

    def metrics(self) -> dict[str, Any] | None:
        """Return the final evaluation, if there is one.

        Raises:
            UserError: the file has another shape, or a score outside of 0 to 100.
        """
        path = self.path / "metrics.json"
        if not path.is_file():
            return None
        return read_checked(path, Metrics, "delete the file and evaluate again")

    def changed_weights(self, metrics: dict[str, Any]) -> bool:
        """Say whether the weights are no longer those that were evaluated.

        They are hashed only where they are younger than the evaluation: whole sweeps are tabled.
        """
        weights, evaluated = self.work / "weights.pth", self.path / "metrics.json"
        if not weights.is_file() or weights.stat().st_mtime_ns <= evaluated.stat().st_mtime_ns:
            return False
        return sha256_file(weights) != metrics["weights_sha256"]

    def record(self) -> Record:
        """Read what was logged during training."""
        return read_record(self.work / "record.jsonl")


def open_run(path: Path) -> RunFolder:
    """Return the run in `path`, which may also be the `work` folder of a run."""
    path = Path(path)
    if path.name == "work" and (path.parent / "run.json").is_file():
        path = path.parent
    return RunFolder(path)


def find_runs(folder: Path) -> list[RunFolder]:
    """Return every run in or below `folder`, in the order of their paths."""
    folders = set()
    for name in ("run.json", "facts.json"):
        for path in Path(folder).rglob(name):
            folders.add(path.parent.parent if path.parent.name == "work" else path.parent)
    return [RunFolder(path) for path in sorted(folders)]

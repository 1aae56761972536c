"""The folder of one run's resumable state: one writer, one identity."""

import contextlib
import json
import logging
import os
from pathlib import Path
from typing import Any

from cae_seg.errors import UserError
from cae_seg.files import atomic_write_json
from cae_seg.run.locks import FileLock

logger = logging.getLogger(__name__)

_LOCK = "writer.lock"
SCHEMA = 2  # of the metadata; 1 was that of the engine before mmengine's Runner
LOCK_SECONDS = 30.0  # patience with another writer where waiting is dear


class WorkDir:
    """Paths and ownership of a run's state; making one touches nothing."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.checkpoints = self.path / "checkpoints"
        self.record = self.path / "record.jsonl"
        self.weights = self.path / "weights.pth"
        self.config = self.path / "config.py"
        self.panels = self.path / "panels"
        self.log = self.path / "train.log"
        self._facts = self.path / "facts.json"
        self._finals = self.path / "finals.json"
        self._lock = FileLock(self.path / _LOCK)

    def holds(self, identity: str) -> bool:
        """Say whether the state here is of this run."""
        return (self.facts() or {}).get("identity") == identity

    def facts(self) -> dict[str, Any] | None:
        """Return what is known about the run whose state lies here."""
        return _read(self._facts)

    def finals(self, identity: str) -> dict[str, Any] | None:
        """Return the record of this run if it is over and its weights are there."""
        finals = _read(self._finals)
        if finals is None or finals.get("identity") != identity or not self.weights.is_file():
            return None
        return finals

    def write_facts(self, facts: dict[str, Any]) -> None:
        """Write down what is known when training starts."""
        atomic_write_json(self._facts, facts)

    def write_finals(self, finals: dict[str, Any]) -> None:
        """Write down that the run is over."""
        atomic_write_json(self._finals, finals)

    def await_other_writer(self, wait: float) -> None:
        """Wait until nobody writes here, as a launcher does before it takes GPUs.

        Raises:
            UserError: another writer is here, and still is after `wait` seconds.
        """
        if self.path.is_dir():
            self._acquire(wait)
            self._lock.release()

    def enter(self, identity: str, wait: float) -> None:
        """Become the only writer; move the state of another run out of the way.

        Raises:
            UserError: as of `await_other_writer`, or the state is of an earlier version.
        """
        self._acquire(wait)
        facts = self.facts()
        self._refuse_earlier_version(facts)
        if facts is not None and facts.get("identity") != identity:
            self._set_aside(str(facts.get("identity")))
        elif facts is None and (self.checkpoints.exists() or self.record.exists()):
            self._set_aside("unknown")

    def leave(self) -> None:
        """Let another writer in."""
        self._lock.release()

    def _acquire(self, wait: float) -> None:
        if not self._lock.acquire(wait, self._tell_wait):
            raise UserError(
                f"{self.path}: {self._lock.owner()} is writing here; wait for it, "
                "stop it, or choose another --work-dir"
            )

    def _refuse_earlier_version(self, facts: dict[str, Any] | None) -> None:
        if facts is not None and facts.get("schema", 1) < SCHEMA:
            raise UserError(
                f"{self.path}: holds a run of an earlier version of cae-seg, which this one cannot "
                "continue; finish it with that version, or move the folder away to train again"
            )

    def _tell_wait(self, owner: str) -> None:
        logger.warning("%s: waiting for %s", self.path, owner)

    def _set_aside(self, identity: str) -> None:
        """Move everything but the lock, which we hold, to `work.stale-<id8>`."""
        base = self.path.with_name(f"{self.path.name}.stale-{identity[:8]}")
        stale, number = base, 2
        while stale.exists():
            stale, number = base.with_name(f"{base.name}-{number}"), number + 1
        stale.mkdir(parents=True)
        # The facts go last: interrupted before, the next start sees a foreign state and goes on.
        entries = sorted(self.path.iterdir(), key=lambda entry: entry == self._facts)
        for entry in entries:
            if entry.name != _LOCK:
                os.rename(entry, stale / entry.name)
        logger.warning(
            "%s: held another run (other recipe, checkpoint or data); moved to %s", self.path, stale
        )


def _read(path: Path) -> dict[str, Any] | None:
    with contextlib.suppress(OSError, json.JSONDecodeError, UnicodeDecodeError):
        return json.loads(path.read_text())
    return None

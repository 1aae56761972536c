"""The folder of one run's resumable state: one writer, one identity."""

import contextlib
import logging
import os
import subprocess
from pathlib import Path
from typing import Any

from cae_seg.errors import UserError
from cae_seg.files import atomic_write_json, read_note, sha256_file
from cae_seg.locks import FileLock
from cae_seg.run.deadline import ask_slurm
from cae_seg.run.paths import RunDir, WorkFiles

logger = logging.getLogger(__name__)

SCHEMA = 3  # of the metadata
EARLIER_METADATA = "facts.json"  # schemas 1 and 2
LOCK_SECONDS = 30.0  # time to wait for another writer while GPUs are held


class Busy(UserError):
    """Another process writes to the work dir."""


class WorkDir(WorkFiles):
    """A run's state, which one process at a time owns; making one touches nothing."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._lock = FileLock(self.lock)
        self._unwritten: dict[str, Any] | None = None

    def holds(self, identity: str) -> bool:
        """Say whether the state here is of this run."""
        return (self.metadata() or {}).get("identity") == identity

    def metadata(self) -> dict[str, Any] | None:
        """Return what is known about the run whose state is here; None if it is lost."""
        return self._unwritten or _read(self.metadata_file)

    def summary(self, identity: str) -> dict[str, Any] | None:
        """Return the summary of this run if it is over and its weights are as they were written."""
        summary = _read(self.summary_file)
        if summary is None or summary.get("identity") != identity or not self.weights.is_file():
            return None
        if self._weights_changed(summary):
            logger.warning("%s: damaged since it was written; making it again", self.weights)
            return None
        return summary

    def check_weights(self) -> None:
        """Check the final weights against the hash that was recorded with them, if one was.

        Raises:
            UserError: they have changed since.
        """
        if self.weights.is_file() and self._weights_changed(_read(self.summary_file) or {}):
            run_file = RunDir(self.path.parent).run_file
            remedy = f" (for Snakemake, delete {run_file} first)" if run_file.exists() else ""
            raise UserError(
                f"{self.weights}: damaged since it was written; repeat the training, which makes "
                f"it again{remedy}"
            )

    def write_metadata(self, metadata: dict[str, Any]) -> None:
        """Write what is known when training starts; without room for it, warn and keep it."""
        self._unwritten = None
        try:
            atomic_write_json(self.metadata_file, metadata)
        except (OSError, UserError) as error:
            logger.warning(
                "%s: cannot be written (%s); training continues", self.metadata_file, error
            )
            self._unwritten = metadata

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Write down that the run is over."""
        atomic_write_json(self.summary_file, summary)

    def await_other_writer(self, wait: float) -> None:
        """Wait until no process writes here, as a launcher does before it takes GPUs.

        Raises:
            Busy: another writer is here, and still is after `wait` seconds.
        """
        if self.path.is_dir():
            self._acquire(wait)
            self._lock.release()

    def enter(self, identity: str, wait: float) -> None:
        """Become the only writer; move the state of another run out of the way.

        Raises:
            Busy: as of `await_other_writer`.
            UserError: the state is of an earlier version.
        """
        self._acquire(wait)
        self._sweep()
        self._refuse_earlier_version()
        found = self._identity()
        if found is not None and found != identity:
            self._set_aside(found)
        elif found is None and (self.checkpoints.exists() or self.metrics_log.exists()):
            self._set_aside("unknown")

    def has_writer(self) -> bool | None:
        """Tell whether a process writes here; None if neither the lock nor SLURM can tell.

        Not every file system shares locks between hosts: a free lock of a SLURM job on another
        host is free only if the job has ended.
        """
        held, job = self._lock.held_elsewhere(), self._lock.note().get("slurm_job_id")
        if held is not None or not job:
            return held
        try:
            state = ask_slurm("squeue", "--noheader", f"--jobs={job}", "--format=%T").strip()
        except subprocess.CalledProcessError as error:
            return False if "Invalid job id" in error.stderr else None
        except (OSError, subprocess.SubprocessError):
            return None
        return state not in ("", "PENDING")

    def last_writer(self) -> dict[str, Any]:
        """Return what the last writer noted: host, pid, since, slurm_job_id; empty if unknown."""
        return self._lock.note()

    def leave(self) -> None:
        """Let another writer in."""
        self._lock.release()

    def _weights_changed(self, summary: dict[str, Any]) -> bool:
        expected = (summary.get("weights") or {}).get("sha256")
        return expected is not None and sha256_file(self.weights) != expected

    def _identity(self) -> str | None:
        """Return whose state is here, from the first file that tells; None if none does."""
        for known in (self.metadata(), _read(self.summary_file)):
            if known is not None and isinstance(known.get("identity"), str):
                return known["identity"]
        if not self.checkpoints.is_dir():
            return None
        from cae_seg.run.checkpoints import identity_of_newest  # loads torch

        return identity_of_newest(self.checkpoints)

    def _sweep(self) -> None:
        """Remove what killed writers left half-written; checkpoints are swept with their folder."""
        for file in (self.metadata_file, self.summary_file, self.weights, self.config):
            for left in self.path.glob(f".{file.name}.*"):
                with contextlib.suppress(OSError):
                    left.unlink()

    def _acquire(self, wait: float) -> None:
        if not self._lock.acquire(wait, self._tell_wait):
            raise Busy(
                f"{self.path}: {self._lock.owner()} is writing here; wait for it, "
                "stop it, or choose another --work-dir"
            )

    def _refuse_earlier_version(self) -> None:
        metadata = self.metadata() or _read(self.path / EARLIER_METADATA)
        if metadata is not None and metadata.get("schema", 1) < SCHEMA:
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
        # The metadata moves last: after an interruption, the next start finds a foreign run again.
        entries = sorted(self.path.iterdir(), key=lambda entry: entry == self.metadata_file)
        for entry in entries:
            if not entry.name.startswith(self.lock.name):
                os.rename(entry, stale / entry.name)
        logger.warning(
            "%s: held another run (other recipe, checkpoint or data); moved to %s", self.path, stale
        )


def _read(path: Path) -> dict[str, Any] | None:
    return read_note(path) or None

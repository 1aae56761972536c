"""The files of a finished run that the workflow declares: its metadata and its config."""

import os
from pathlib import Path
from typing import Any

from cae_seg.errors import UserError
from cae_seg.files import atomic_write_json, atomic_write_text, read_note
from cae_seg.run.work_dir import WorkDir


def write_outputs(work: WorkDir, run_file: Path, summary: dict[str, Any], config: str) -> None:
    """Write config and metadata of a finished run, the metadata last.

    Args:
        work: where the run was made.
        run_file: where the metadata goes; the config goes next to it.
        summary: of the run.
        config: what the run was built from, where the work dir has lost it.
    """
    copy = run_file.parent / "config.py"
    if copy.absolute() != work.config.absolute():
        atomic_write_text(copy, work.config.read_text() if work.config.is_file() else config)
    weights = os.path.relpath(work.weights, run_file.parent)
    atomic_write_json(run_file, {**summary, "weights": {**summary["weights"], "path": weights}})


def report_of(work: WorkDir, identity: str | None, error: str | None) -> dict[str, Any]:
    """Return what `collect_run` needs to know of a run that trained with others."""
    return {"work_dir": str(work.path), "identity": identity, "error": error}


def collect_run(work_dir: Path, report: Path, run_file: Path) -> None:
    """Write the outputs of one of several runs that trained together.

    Where there are none, the report is removed, so that the next start trains again.

    Args:
        work_dir: of the run.
        report: of all runs, as `cae-seg train --report` writes it.
        run_file: where the metadata goes.

    Raises:
        UserError: the run failed, or is not whole.
    """
    runs = {run["work_dir"]: run for run in read_note(report).get("runs", [])}
    found, work = runs.get(str(work_dir)) or {}, WorkDir(work_dir)
    summary = work.summary(found.get("identity") or "")
    if summary is not None and work.config.is_file():
        write_outputs(work, run_file, summary, "")
        return
    report.unlink(missing_ok=True)
    raise UserError(
        found.get("error") or f"{work_dir}: holds no finished run; the same command trains it again"
    )

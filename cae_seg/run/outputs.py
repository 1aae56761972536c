"""The files of a finished run that the workflow declares: its metadata and its config."""

import os
from pathlib import Path
from typing import Any

from cae_seg.errors import UserError
from cae_seg.files import atomic_write_json, atomic_write_text
from cae_seg.run.schemas import JointReport, read_checked
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

    Args:
        work_dir: of the run.
        report: of all runs, as `cae-seg train --report` writes it.
        run_file: where the metadata goes.

    Raises:
        UserError: the run failed, or is not whole; or the report is none.
    """
    runs = read_checked(report, JointReport, "no report of runs that trained together; remove it")
    known = {run["work_dir"]: run for run in runs["runs"]}
    found, work = known.get(str(work_dir), {}), WorkDir(work_dir)
    summary = work.summary(found.get("identity") or "")
    if summary is not None and work.config.is_file():
        write_outputs(work, run_file, summary, "")
        return
    raise UserError(
        found.get("error") or f"{work_dir}: holds no finished run; the same command trains it again"
    )

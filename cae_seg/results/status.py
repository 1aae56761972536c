"""What a sheet still lacks after its workflow has failed: which runs, why, and what to do."""

import re
from collections.abc import Iterator
from pathlib import Path

from cae_seg.errors import UserError
from cae_seg.run.paths import RunFolder
from cae_seg.sheet.reading import Sheet
from cae_seg.sheet.schema import Experiment

RULES = ("fine_tune", "evaluate")
_TAIL_BYTES = 20_000
_ERROR = re.compile(r"\berror\b|Error:|Exception|Killed|CANCELLED|DUE TO|slurmstepd", re.IGNORECASE)


def unfinished(sheet: Sheet, command: str = "the same command") -> list[str]:
    """Return a line for each run without a result, and one with the command to resume.

    A line tells experiment and seed, how far the run got, its own error, and where its log is.

    Args:
        sheet: what was to be run.
        command: that resumes the workflow.
    """
    lines = []
    for row in sheet.experiments:
        for seed in row.seeds:
            run = RunFolder(sheet.run_folder(row.name, seed))
            if not (run.path / "metrics.json").is_file():
                lines.append(f"{row.name}, seed {seed}: {_state(run)}{_cause(sheet, row, seed)}")
    if lines:
        lines.append(f"To resume, run {command} again: nothing that is finished is repeated.")
    return lines


def _state(run: RunFolder) -> str:
    """Tell how far a run got and what it still has."""
    if run.finished:
        return "trained, not evaluated"
    if not run.exists:
        return "not started"
    record = run.record()
    reached = max(
        [*record.train, *(event.get("iteration", 0) for event in record.events)], default=0
    )
    saved = max(
        (_iteration(path.stem) for path in run.work.glob("checkpoints/iter_*.pth")), default=0
    )
    try:
        total = f" of {run.facts()['iterations']}"
    except (UserError, KeyError, TypeError):
        total = ""
    return f"reached iteration {reached}{total}, resumes from {saved}"


def _cause(sheet: Sheet, row: Experiment, seed: int) -> str:
    """Return the error of a run and the log that has it, as far as there are any."""
    run = RunFolder(sheet.run_folder(row.name, seed))
    for rule in RULES:
        if message := _last_error(run.error_file(rule)):
            return f"; {message}; log {_log(sheet, run, row, seed, rule)}"
    for log in _logs(sheet, run, row, seed):
        if log.is_file():
            message = _last_error(log)
            return "; ".join(["", *([message] if message else []), f"log {log}"])
    return ""


def _logs(sheet: Sheet, run: RunFolder, row: Experiment, seed: int) -> Iterator[Path]:
    """Yield the logs that may tell why a run has no result, the latest stage first."""
    for rule in reversed(RULES):
        yield _log(sheet, run, row, seed, rule)
    if not row.checkpoint_is_url:
        yield from sorted(sheet.results.glob(f"logs/inspect_checkpoint/{_stem(row)}-*.log"))
    yield sheet.results / "logs/prepare_data/data.log"


def _log(sheet: Sheet, run: RunFolder, row: Experiment, seed: int, rule: str) -> Path:
    if rule == "fine_tune":
        return run.path / "console.log"
    return sheet.results / "logs" / rule / f"{row.name}_seed{seed}.log"


def _stem(row: Experiment) -> str:
    return Path(row.checkpoint).stem


def _last_error(path: Path) -> str:
    """Return the last line of a file that looks like an error; nothing without one."""
    try:
        with path.open("rb") as stream:
            stream.seek(max(0, path.stat().st_size - _TAIL_BYTES))
            lines = stream.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    if path.suffix == ".txt":
        return lines[0] if lines else ""
    found = (line.strip() for line in reversed(lines) if _ERROR.search(line))
    return next(found, "").removeprefix("cae-seg: error: ")


def _iteration(stem: str) -> int:
    number = stem.removeprefix("iter_")
    return int(number) if number.isdigit() else 0

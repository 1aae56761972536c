"""How far all runs of a sheet are, as text: failed ones first, with their error and log."""

import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from tabulate import tabulate

from cae_seg.progress import duration, run_label
from cae_seg.results.collect import Sheets, open_sheets
from cae_seg.results.run_state import STATES, RunState, preparation_error, sheet_states
from cae_seg.sheet.reading import Sheet

HEAD = ("Run", "State", "Iteration", "Loss", "mIoU", "Images/s", "ETA", "Node", "Job")


def write_status(sheets: Sheets, *, format: str = "text", now: float | None = None) -> str:
    """Return the state of every run of one or several sheets.

    Args:
        sheets: what was to be run.
        format: "text" or "json".
        now: Unix time; the clock's by default.
    """
    now = time.time() if now is None else now
    states = sheet_states(open_sheets(sheets), now)
    if format == "json":
        return json.dumps([asdict(state) for state in states], default=str, indent=1)
    table = tabulate([_cells(state, now) for state in states], HEAD, disable_numparse=True)
    return "\n".join([table, "", *failures(states), totals(states, now)])


def _cells(state: RunState, now: float) -> list[str]:
    line = state.line or {} if state.state == "running" else {}
    scored = f"{state.miou:.2f} at {state.miou_iteration}" if state.miou is not None else ""
    return [
        run_label(state.experiment, state.seed),
        state.state,
        f"{state.iteration}/{state.iterations}" if state.iterations else "",
        _number(line.get("loss"), ".3f"),
        scored,
        _number(line.get("images_per_second"), ".1f"),
        duration(max(0.0, state.ends - now)) if state.ends else "",
        state.node or "",
        str(state.job or ""),
    ]


def _number(value: Any, spec: str) -> str:
    return "" if value is None else format(value, spec)


def failures(states: Sequence[RunState]) -> list[str]:
    """Return for each failed run its error, where to read more, and how far it got."""
    lines = []
    for state in states:
        if state.state == "failed":
            lines.append(f"{run_label(state.experiment, state.seed)} failed: {state.error}")
            reached = f" (iteration {state.iteration} of {state.iterations})"
            if state.log:
                lines.append(f"  log: {state.log}{reached if state.iterations else ''}")
    return lines


def totals(states: Sequence[RunState], now: float) -> str:
    """Return one line for the whole sheet."""
    counts = Counter(state.state for state in states)
    parts = [f"{counts[name]} {name}" for name in reversed(STATES) if counts[name]]
    left = [max(0.0, state.ends - now) for state in states if state.ends]
    if left:
        parts.append(f"mean ETA of running ones {duration(sum(left) / len(left))}")
    return f"{len(states)} runs: {', '.join(parts)}"


def failure_summary(sheet: Sheet, command: str = "the same command") -> list[str]:
    """Return what to read after a workflow has failed: each run without a result, and why.

    Args:
        sheet: what was to be run.
        command: that resumes the workflow.
    """
    states = sheet_states([sheet], time.time())
    lines = failures(states)
    for state in states:
        if state.state not in ("failed", "finished"):
            lines.append(f"{run_label(state.experiment, state.seed)} {_not_done(sheet, state)}")
    if lines:
        lines.append(f"Run {command} again to resume: finished steps are not repeated.")
    return lines


def _not_done(sheet: Sheet, state: RunState) -> str:
    """Return how far a run without a result is, or what kept it from starting."""
    if state.state == "queued":
        cause = preparation_error(sheet)
        return f"not started: {cause}" if cause else "not started"
    if state.iterations is None or state.state == "trained":
        return f"{state.state}, not evaluated" if state.state == "trained" else state.state
    log = f"; log {state.log}" if state.log else ""
    return f"{state.state} at iteration {state.iteration} of {state.iterations}{log}"

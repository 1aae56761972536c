"""The results table: Markdown to read, CSV to compute with, LaTeX for a paper, JSON for scripts."""

import json
import os
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import pandas as pd

from cae_seg.errors import UserError
from cae_seg.files import atomic_write_text
from cae_seg.results.aggregate import aggregate
from cae_seg.results.collect import Sheets, collect_runs
from cae_seg.results.columns import Cells, make_cells
from cae_seg.results.latex import config_list, render_latex
from cae_seg.run.provenance import web_address

FORMATS = ("md", "csv", "latex", "json")
PUBLISHED_NAMES = {
    "backbone": "Backbone",
    "pretraining_epochs": "#Pretrained Epoch",
    "mIoU": "mIoU",
    "config": "Config",
}
LEGEND = (
    "mIoU: mean ± sample standard deviation over n seeds, percent. "
    "Bold: the best learning rate of its backbone, pretraining, head and data."
)


def write_table(
    sheets: Sheets,
    out: Path | None = None,
    csv: Path | None = None,
    *,
    partial: bool = False,
    format: str = "md",
    columns: Sequence[str] | None = None,
    code_fingerprint: str | None = None,
) -> str:
    """Gather the results of sheets; write them, and return them as text.

    Args:
        sheets: one sheet or several, joined in one table.
        out: where to write the table.
        csv: where to write it unrounded, one row per combination.
        partial: show unfinished rows by their state instead of refusing.
        format: "md", "csv", "latex" or "json".
        columns: which columns to show, in this order; see `columns.make_cells`.
        code_fingerprint: of the code as it is now; rows made with other code are marked.

    Raises:
        UserError: a run has no metrics yet and `partial` is not set, or a format or column is
            unknown.
    """
    runs = collect_runs(sheets)
    missing = runs[runs["state"] != "finished"]
    if len(missing) and not partial:
        raise UserError(
            f"{missing.iloc[0].folder}/metrics.json: is missing "
            f"({len(missing)} of {len(runs)} runs are not finished); run the workflow, "
            "or add --partial for what is there"
        )
    frame = aggregate(runs, code_fingerprint=code_fingerprint)
    folder = out.parent if out else Path()
    text = render(frame, format, partial=partial, columns=columns, folder=folder)
    if out is not None:
        atomic_write_text(out, text)
    if csv is not None:
        atomic_write_text(csv, render(frame, "csv"))
    return text


def render(
    frame: pd.DataFrame,
    format: str = "md",
    *,
    partial: bool = False,
    columns: Sequence[str] | None = None,
    folder: Path = Path(),
) -> str:
    """Return the combinations as text.

    Args:
        frame: what `aggregate.aggregate` returns.
        format: "md", "csv", "latex" or "json".
        partial: add how far each row is.
        columns: which columns to show, in this order (Markdown and LaTeX).
        folder: where the text will be kept, for its links.
    """
    if format not in FORMATS:
        raise UserError(f"--format {format}: unknown; one of {', '.join(FORMATS)}")
    if format == "csv":
        return _unrounded(frame).to_csv(index=False)
    if format == "json":
        return _json(frame)
    cells = make_cells(frame, partial=partial, chosen=columns)
    below = [LEGEND, *_folded(cells)]
    if format == "latex":
        configs = f"Config: {config_list(cells.configs)}."
        return render_latex(cells, list(frame["best"]), [*below, configs, footer(frame)])
    configs = _config_links(frame, cells.configs, folder)
    return _markdown(cells, list(frame["best"]), [*below, f"Config: {configs}.", footer(frame)])


def _folded(cells: Cells) -> list[str]:
    """Return a line for what all rows have in common."""
    parts = []
    if cells.same:
        same = "; ".join(f"{name} {text}" for name, text in cells.same.items())
        parts.append(f"Same in all rows: {same}.")
    if cells.empty:
        parts.append(f"No row has: {', '.join(cells.empty)}.")
    return [" ".join(parts)] if parts else []


def _config_links(frame: pd.DataFrame, configs: Sequence[str], folder: Path) -> str:
    """Return numbered links: to the web where the repository has an address, else to `results/`.

    Both stay valid when `results/` is copied; the web address wherever the table is copied to.
    """
    links = []
    for number, config in enumerate(configs, 1):
        row = frame[frame["config"] == config].iloc[0]
        commit = row.commits.split()[-1] if row.commits and not row.dirty else None
        resolved = os.path.relpath(Path(row.folder) / "config.py", folder)
        links.append(f"[{number}] [{Path(config).stem}]({web_address(config, commit) or resolved})")
    return "; ".join(links)


def footer(frame: pd.DataFrame) -> str:
    """Return the line under the table: where all its numbers come from."""
    words = {name: _words(frame[name]) for name in ("data_fingerprint", "commits", "iterations")}
    devices = sorted(set(frame["device"]) - {""})
    data = ", ".join(word[:12] for word in words["data_fingerprint"]) or "none yet"
    commits = ", ".join(word[:10] for word in words["commits"]) or "unknown"
    return (
        f"Data {data}; code {commits}; {', '.join(words['iterations']) or 'no'} iterations; "
        f"{', '.join(devices) or 'no device'}; {date.today().isoformat()}."
    )


def _words(column: pd.Series) -> list[str]:
    return list(dict.fromkeys(word for text in column for word in text.split()))


def _markdown(cells: Cells, bold: Sequence[bool], notes: Sequence[str]) -> str:
    rate = cells.columns.index("Learning rate") if "Learning rate" in cells.columns else -1
    rows = [
        [
            f"**{text}**" if strong and number == rate else text.replace("|", "\\|")
            for number, text in enumerate(row)
        ]
        for row, strong in zip(cells.rows, bold, strict=True)
    ]
    rows = [cells.columns, *rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(cells.columns))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join([*lines, "", "\n\n".join(notes), ""])


def _unrounded(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the frame with the columns of the published table first, by their names."""
    renamed = frame.drop(columns=["folder", "dirty"]).rename(columns=PUBLISHED_NAMES)
    names = list(PUBLISHED_NAMES.values())
    return renamed[[*names, *(name for name in renamed.columns if name not in names)]]


def _json(frame: pd.DataFrame) -> str:
    rows = [
        {key: None if value != value else value for key, value in row.items()}
        for row in frame.to_dict(orient="records")
    ]
    note = f"{footer(frame)} {LEGEND}"
    return json.dumps({"schema": 1, "rows": rows, "footer": note}, indent=1) + "\n"

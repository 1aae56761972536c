"""The results table: Markdown to read, CSV to compute with, LaTeX for a paper, JSON for scripts."""

import json
import math
import os
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pandas as pd

from cae_seg.errors import UserError
from cae_seg.sheet.sheet import Sheet
from cae_seg.files import atomic_write_text
from cae_seg.results.collect import collect_runs, combine, open_sheet

FORMATS = ("md", "csv", "latex", "json")
PUBLISHED_NAMES = {
    "backbone": "Backbone",
    "pretraining_epochs": "#Pretrained Epoch",
    "mIoU": "mIoU",
    "config": "Config",
}
NOTHING = "–"
LEGEND = (
    "mIoU: mean ± sample standard deviation over n seeds, percent. "
    "Bold: the best learning rate of its backbone and pretraining length."
)


def write_table(
    sheet: Sheet | Path | str,
    out: Path | None = None,
    csv: Path | None = None,
    *,
    partial: bool = False,
    format: str = "md",
    code_fingerprint: str | None = None,
) -> str:
    """Gather the results of a sheet; write them, and return them as text.

    Args:
        sheet: the sheet or its file.
        out: where to write the table.
        csv: where to write it unrounded, one row a combination.
        partial: show unfinished rows by their state instead of refusing.
        format: "md", "csv", "latex" or "json".
        code_fingerprint: of the code as it is now; rows made with other code say so.

    Raises:
        UserError: a run has no metrics yet and `partial` is not set, or the format is unknown.
    """
    sheet = open_sheet(sheet)
    runs = collect_runs(sheet)
    missing = runs[runs["state"] != "finished"]
    if len(missing) and not partial:
        first = missing.iloc[0]
        raise UserError(
            f"{sheet.results}/{first.experiment}/seed_{first.seed}/metrics.json: is missing "
            f"({len(missing)} of {len(runs)} runs are not finished); run the workflow, "
            "or add --partial for what is there"
        )
    frame = combine(runs, code_fingerprint=code_fingerprint)
    text = render(frame, format, partial=partial, folder=out.parent if out else Path())
    if out is not None:
        atomic_write_text(out, text)
    if csv is not None:
        atomic_write_text(csv, render(frame, "csv", partial=partial))
    return text


def render(
    frame: pd.DataFrame, format: str = "md", *, partial: bool = False, folder: Path = Path()
) -> str:
    """Return the combinations as text.

    Args:
        frame: what `collect.combine` returns.
        format: "md", "csv", "latex" or "json".
        partial: add how far each row is.
        folder: where the text will lie, for its links.
    """
    if format not in FORMATS:
        raise UserError(f"--format {format}: unknown; one of {', '.join(FORMATS)}")
    if format == "csv":
        return _unrounded(frame).to_csv(index=False)
    if format == "json":
        return _json(frame)
    if format == "latex":
        return _latex(_cells(frame, partial, _latex_config, _latex_bold), footer(frame))

    def link(config: str) -> str:
        return f"[{Path(config).stem}]({os.path.relpath(config, folder)})"

    return _markdown(_cells(frame, partial, link, lambda text: f"**{text}**"), footer(frame))


def _cells(
    frame: pd.DataFrame,
    partial: bool,
    link: Callable[[str], str],
    bold: Callable[[str], str],
) -> pd.DataFrame:
    """Return the table as a person reads it: every cell a text, the published columns first."""
    rows = [_cells_of(row, link, bold) for row in frame.itertuples()]
    cells = pd.DataFrame(rows)
    if frame["method"].nunique() > 1:
        cells.insert(2, "Pretraining", list(frame["method"]))
    if partial:
        cells["State"] = list(frame["state"])
    return cells


def _cells_of(row: Any, link: Callable[[str], str], bold: Callable[[str], str]) -> dict[str, str]:
    spread = f"{row.mIoU_min:.2f} to {row.mIoU_max:.2f}" if row.n > 1 else NOTHING
    return {
        "Backbone": row.backbone,
        "#Pretrained Epoch": str(row.pretraining_epochs),
        "mIoU": _score(row),
        "Config": link(row.config),
        "Learning rate": bold(row.learning_rate) if row.best else row.learning_rate,
        "Seeds": row.seeds or NOTHING,
        "Spread": spread,
        "Published mIoU": _decimal(row.published_miou, ".1f"),
        "Difference": _decimal(row.difference, "+.2f"),
        "GPU-hours": _decimal(row.gpu_hours, ".3g" if row.gpu_hours < 10 else ".0f"),
        "Notes": row.notes,
    }


def _score(row: Any) -> str:
    if row.n > 1:
        return f"{row.mIoU:.2f} ± {row.mIoU_std:.2f} (n={row.n})"
    return _decimal(row.mIoU, ".2f")


def _decimal(value: float, spec: str) -> str:
    return NOTHING if math.isnan(value) else format(value, spec)


def footer(frame: pd.DataFrame) -> str:
    """Return the line under the table: where all its numbers come from."""
    words = {name: _words(frame[name]) for name in ("data_fingerprint", "commits", "iterations")}
    devices = sorted(set(frame["device"]) - {""})
    data = ", ".join(word[:12] for word in words["data_fingerprint"]) or "none yet"
    commits = ", ".join(word[:10] for word in words["commits"]) or "unknown"
    return (
        f"Data {data}; code {commits}; {', '.join(words['iterations']) or 'no'} iterations; "
        f"{', '.join(devices) or 'no device'}; {date.today().isoformat()}. {LEGEND}"
    )


def _words(column: pd.Series) -> list[str]:
    return list(dict.fromkeys(word for text in column for word in text.split()))


def _markdown(cells: pd.DataFrame, note: str) -> str:
    rows = [list(cells.columns), *cells.to_numpy().tolist()]
    rows = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(cells.columns))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join([*lines, "", note, ""])


def _latex(cells: pd.DataFrame, note: str) -> str:
    rows = [" & ".join(_latex_text(cell) for cell in row) for row in cells.to_numpy().tolist()]
    head = " & ".join(_latex_text(column) for column in cells.columns)
    return "\n".join(
        [
            f"% {note}",
            rf"\begin{{tabular}}{{{'l' * len(cells.columns)}}}",
            r"\toprule",
            rf"{head} \\",
            r"\midrule",
            *(rf"{row} \\" for row in rows),
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


def _latex_text(text: str) -> str:
    if text.startswith("\\text"):
        return text
    for plain, escaped in (("\\", r"\textbackslash{}"), ("_", r"\_"), ("#", r"\#"), ("%", r"\%"),
                           ("&", r"\&"), ("±", r"$\pm$"), (NOTHING, "--")):  # fmt: skip
        text = text.replace(plain, escaped)
    return text


def _latex_bold(text: str) -> str:
    return rf"\textbf{{{text}}}"


def _latex_config(config: str) -> str:
    return rf"\texttt{{{_latex_text(Path(config).stem)}}}"


def _unrounded(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the frame with the columns of the published table first, by their names."""
    renamed = frame.rename(columns=PUBLISHED_NAMES)
    names = list(PUBLISHED_NAMES.values())
    return renamed[[*names, *(name for name in renamed.columns if name not in names)]]


def _json(frame: pd.DataFrame) -> str:
    rows = [
        {key: None if value != value else value for key, value in row.items()}
        for row in frame.to_dict(orient="records")
    ]
    return json.dumps({"schema": 1, "rows": rows, "footer": footer(frame)}, indent=1) + "\n"

"""Results as web pages: Snakemake's report shows HTML, and only offers other files for download."""

import html
import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pandas as pd
from markdown_it import MarkdownIt

from cae_seg.files import atomic_write_text
from cae_seg.results.aggregate import aggregate
from cae_seg.results.collect import Sheets, collect_runs, open_sheets
from cae_seg.results.columns import make_cells
from cae_seg.run.paths import RunDir
from cae_seg.sheet.schema import Experiment

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>{title}</title>
<style>
body {{ font: 14px/1.5 sans-serif; margin: 1.5em; color: #222; }}
table {{ border-collapse: collapse; margin: 1em 0; }}
th, td {{ border-bottom: 1px solid #ccc; padding: 0.3em 0.7em; text-align: left; }}
th, td {{ vertical-align: top; }}
td + td {{ overflow-wrap: anywhere; }}
th {{ border-bottom: 2px solid #222; }}
pre {{ background: #f4f4f4; padding: 1em; overflow-x: auto; }}
</style>
</head>
<body>
{body}</body>
</html>
"""


def write_page(title: str, markdown: str, out: Path) -> None:
    """Write Markdown as one page that needs no other file; links become plain text."""
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    for part in ("link_open", "link_close"):  # they lead nowhere from inside a report
        parser.add_render_rule(part, lambda *_: "")
    body = parser.render(markdown)
    atomic_write_text(out, PAGE.format(title=html.escape(title), body=body))


OVERVIEW = ("Backbone", "#Pretrained Epoch", "Learning rate", "mIoU")


def write_overview(sheets: Sheets, out: Path) -> None:
    """Write what the report opens on: the best row, and every row with links to its runs.

    Args:
        sheets: one sheet or several.
        out: reStructuredText, in which Snakemake's report resolves names of its files to links.
    """
    frame = aggregate(collect_runs(sheets))
    names = [name for name in ("Data", "Method", "Head") if name in make_cells(frame).columns]
    names = [*names, *OVERVIEW]
    # Of all rows at once: a part of them may not differ in a column that the whole shows.
    rows = make_cells(frame, chosen=names).rows
    lines = [*_best_rows(frame, names, rows), "", ".. list-table::", "   :header-rows: 1", ""]
    lines += _rst_row([*names, "Runs"])
    for row, cells in zip(frame.itertuples(), rows, strict=True):
        runs = [
            f"`seed {seed} <{row.experiment}_seed{seed}.html_>`__" for seed in row.seeds.split()
        ]
        lines += _rst_row([*map(_rst, cells), ", ".join(runs)])
    atomic_write_text(out, "\n".join([*lines, ""]))


def _best_rows(frame: pd.DataFrame, names: list[str], rows: list[list[str]]) -> Iterator[str]:
    """Yield a line for the best row of each data set, of those that may be compared."""
    usable = frame[frame["comparable"] & frame["mIoU"].notna()]
    for _, group in usable.groupby("data_set", sort=False):
        cells = rows[frame.index.get_loc(group["mIoU"].idxmax())]
        shown = ", ".join(f"{name} {cell}" for name, cell in zip(names, cells, strict=True))
        yield f"**Best:** {_rst(shown)}."
        yield ""


def _rst_row(cells: list[str]) -> list[str]:
    return [f"   {'*' if number == 0 else ' '} - {cell}" for number, cell in enumerate(cells)]


def _rst(text: str) -> str:
    return re.sub(r"([\\*`|_<>])", r"\\\1", text)


def write_run_pages(sheets: Sheets, folder: Path) -> None:
    """Write a page for every finished run: its scores, what it was made from, its config.

    Args:
        sheets: one sheet or several.
        folder: where `<experiment>_seed<seed>.html` goes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = [(sheet, row) for sheet in open_sheets(sheets) for row in sheet.experiments]
    for sheet, row in rows:
        for seed in row.seeds:
            run = RunDir(sheet.run_dir(row.name, seed))
            if run.metrics() is not None:
                name = f"{row.name}_seed{seed}"
                write_page(name, _run_page(row, seed, run), folder / f"{name}.html")


def _run_page(row: Experiment, seed: int, run: RunDir) -> str:
    metadata, scores = run.metadata(), run.metrics() or {}
    config = run.path / "config.py"
    parts = [
        f"# {row.name}, seed {seed}",
        f"**mIoU {scores['mIoU']:.2f}**, mAcc {scores['mAcc']:.2f}, aAcc {scores['aAcc']:.2f} "
        f"on {scores.get('images', 'unknown')} images.",
        _table(("What", "Value"), _settings(row, metadata)),
    ]
    if metadata.get("evaluations"):
        names = ("iteration", "mIoU", "mAcc", "aAcc")
        lines = [[_short(line[name]) for name in names] for line in metadata["evaluations"]]
        parts += ["## Evaluations during training", _table(names, lines)]
    if config.is_file():
        parts += ["## Resolved config", f"````python\n{config.read_text()}\n````"]
    return "\n\n".join(parts)


def _settings(row: Experiment, metadata: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Return what decided a run's numbers, and what it took, as a person reads it."""
    batch, code, data = (metadata.get(key) or {} for key in ("batch", "code", "data"))
    checkpoint, device = (metadata.get(key) or {} for key in ("checkpoint", "device"))
    yield "Backbone", f"{row.backbone}, pretrained {row.pretraining_epochs} epochs by {row.method}"
    yield "Learning rate", row.learning_rate
    for name in ("config", "layer_decay", "drop_path", "iterations", "precision"):
        yield name.replace("_", " ").capitalize(), _short(metadata.get(name))
    yield "Options", ", ".join(f"{key}={value}" for key, value in row.options.items()) or "none"
    yield "Batch", ", ".join(f"{key} {value}" for key, value in batch.items()).replace("_", " ")
    yield "Device", f"{device.get('count', '')} × {device.get('name', 'unknown')}"
    if checkpoint:
        yield "Checkpoint", f"{checkpoint.get('path')}, SHA-256 {checkpoint.get('sha256')}"
        numbers = [
            f"{checkpoint[key]} {key}"
            for key in ("loaded", "resized", "initialised", "left", "dropped")
            if key in checkpoint
        ]
        yield "Its tensors", f"{checkpoint.get('layout', '')} layout: {', '.join(numbers)}"
    images = ", ".join(f"{count} {split}" for split, count in data.get("images", {}).items())
    yield "Data", f"{images} images, fingerprint {data.get('fingerprint')}"
    dirty = " with uncommitted changes" if code.get("dirty") else ""
    yield "Code", f"commit {code.get('commit') or 'unknown'}{dirty}"
    versions = metadata.get("versions", {}).items()
    yield "Versions", ", ".join(f"{name} {version}" for name, version in versions)
    if metadata.get("slurm_job_ids"):
        yield "SLURM jobs", ", ".join(map(str, metadata["slurm_job_ids"]))
    took = timedelta(seconds=round(metadata.get("seconds", 0)))
    yield "Trained", f"{metadata.get('started')} to {metadata.get('ended')}, {took} of work"
    yield "Attempts", _short(metadata.get("attempts"))
    yield "GPU-hours", _short(metadata.get("gpu_hours"))
    yield "Identity", _short(metadata.get("identity"))


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _table(head: tuple[str, ...], rows: Any) -> str:
    lines = [head, ["---"] * len(head), *rows]
    cells = [[cell.replace("|", "\\|").replace("_", "\\_") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)

"""The pictures of a study, as SVG and PNG, told apart by markers and dashes as well as by colour.

The same results give the same bytes: no dates, fixed identifiers.
"""

import io
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.image
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cae_seg.files import atomic_writer, read_json
from cae_seg.results.aggregate import aggregate
from cae_seg.results.collect import Sheets, collect_runs
from cae_seg.run.paths import RunFolder

MARKERS = "osD^vP<>"
DASHES = ("-", "--", ":", "-.")
COLOURS = ("#1b1b1b", "#0b61a4", "#c1440e", "#3f7f3f", "#7a4fa3", "#8a6d00")
STYLE = {
    "svg.hashsalt": "cae-seg",
    "svg.fonttype": "none",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "figure.facecolor": "white",
}
MOST_ENTRIES = 16
ROWS = 50
MOST_PANELS = 4


def write_figures(sheets: Sheets, out_dir: Path) -> list[Path]:
    """Draw `miou_by_learning_rate`, `miou_by_iteration` and `per_class` of a sheet's results.

    And `predictions`, where the best run has kept panels of its predictions.

    Args:
        sheets: one sheet or several; runs that are not finished are left out.
        out_dir: where `<name>.svg` and `<name>.png` go.

    Returns:
        The files written.
    """
    runs = collect_runs(sheets)
    frame = aggregate(runs)
    with mpl.rc_context(STYLE):
        figures = {
            "miou_by_learning_rate": draw_learning_rates(frame, runs),
            "miou_by_iteration": draw_iterations(runs),
            "per_class": _draw_two_best(frame, runs),
        }
        panels = _panels_of_best(frame)
        if panels:
            figures["predictions"] = draw_panels(panels)
    paths = [Path(out_dir) / f"{name}.{end}" for name in figures for end in ("svg", "png")]
    for path in paths:
        save(figures[path.stem], path)
    return paths


def save(figure: Figure, path: Path) -> None:
    """Write a figure, the format being the file's suffix, reproducibly to the byte."""
    metadata = {"Date": None} if path.suffix == ".svg" else {"Software": None}
    buffer = io.BytesIO()
    with mpl.rc_context(STYLE):
        figure.savefig(buffer, format=path.suffix[1:], dpi=150, metadata=metadata)
    with atomic_writer(path) as stream:
        stream.write(buffer.getvalue())


def _look(number: int) -> dict[str, Any]:
    return {
        "marker": MARKERS[number % len(MARKERS)],
        "linestyle": DASHES[number % len(DASHES)],
        "color": COLOURS[number % len(COLOURS)],
    }


def draw_learning_rates(frame: pd.DataFrame, runs: pd.DataFrame) -> Figure:
    """Draw mIoU over the learning rate, one line for every pretraining length.

    Bars are the standard deviation over seeds, dots the seeds, crosses the published values.
    """
    axes, figure = _axes(7.0, 4.5)
    done = frame[frame["n"] > 0]
    for number, (label, group) in enumerate(_pretrainings(done)):
        look = _look(number)
        group = group.assign(rate=group["learning_rate"].astype(float)).sort_values("rate")
        axes.errorbar(
            group["rate"],
            group["mIoU"],
            group["mIoU_std"].fillna(0),
            capsize=4,
            label=label,
            **look,
        )
        seeds = runs[runs["experiment"].isin(group["experiment"])]
        axes.plot(
            seeds["learning_rate"].astype(float), seeds["mIoU"], ".", color=look["color"], alpha=0.5
        )
    _draw_published(axes, frame)
    rates = {float(text): text for text in frame["learning_rate"]}
    axes.set_xscale("log")
    axes.set_xticks(list(rates), list(rates.values()))
    axes.minorticks_off()
    axes.set(xlabel="learning rate", ylabel="mIoU (%)")
    _legend_or_note(axes, figure)
    return figure


def _draw_published(axes: Axes, frame: pd.DataFrame) -> None:
    known = frame.dropna(subset="published_miou")
    if len(known):
        rates = known["learning_rate"].astype(float)
        axes.plot(rates, known["published_miou"], "kx", markersize=9, label="published")
        for rate, row in zip(rates, known.itertuples(), strict=True):
            text = f" {row.backbone} {row.pretraining_epochs}"
            axes.annotate(text, (rate, row.published_miou), fontsize=7, va="bottom")


def _pretrainings(frame: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    several = frame["method"].nunique() > 1
    for (backbone, method, epochs), group in frame.groupby(
        ["backbone", "method", "pretraining_epochs"], sort=True
    ):
        yield f"{backbone}, {method + ' ' if several else ''}{epochs} epochs", group


def draw_iterations(runs: pd.DataFrame) -> Figure:
    """Draw mIoU at every evaluation during training, one line a run."""
    axes, figure = _axes(7.0, 4.5)
    by_run = len(runs) <= MOST_ENTRIES
    for number, (label, group) in enumerate(_pretrainings(runs)):
        rates = list(dict.fromkeys(group["learning_rate"]))
        for run in group.itertuples():
            points = _evaluations(RunFolder(run.folder))
            if points:
                look = {
                    "color": COLOURS[number % len(COLOURS)],
                    "linestyle": DASHES[number % len(DASHES)],
                    "marker": MARKERS[rates.index(run.learning_rate) % len(MARKERS)],
                }
                name = f"{label}, lr {run.learning_rate}, seed {run.seed}" if by_run else label
                axes.plot(*zip(*points, strict=True), label=name, markersize=4, lw=1.2, **look)
    axes.set(xlabel="iteration", ylabel="mIoU (%)")
    _legend_or_note(axes, figure)
    return figure


def _evaluations(run: RunFolder) -> list[tuple[int, float]]:
    lines = list(run.record().evaluations.values())
    if not lines and run.finished:
        lines = run.facts().get("evaluations", [])
    return [(line["iteration"], line["mIoU"]) for line in lines if line.get("mIoU") is not None]


def _axes(width: float, height: float) -> tuple[Axes, Figure]:
    figure = Figure((width, height), layout="constrained")
    return figure.add_subplot(), figure


def _legend_or_note(axes: Axes, figure: Figure) -> None:
    entries = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    if entries:
        figure.legend(
            entries.values(),
            entries.keys(),
            loc="outside right upper",
            fontsize=7.5,
            handlelength=4,
        )
    else:
        axes.text(0.5, 0.5, "no finished run yet", ha="center", transform=axes.transAxes)


def _draw_two_best(frame: pd.DataFrame, runs: pd.DataFrame) -> Figure:
    """Compare the best combination with the best of another pretraining, or else the second."""
    ranked = frame[frame["n"] > 0].sort_values("mIoU", ascending=False, kind="stable")
    if ranked.empty:
        axes, figure = _axes(7.0, 4.5)
        _legend_or_note(axes, figure)
        return figure
    first = ranked.iloc[0]
    keys = ["backbone", "method", "pretraining_epochs"]
    others = ranked[(ranked[keys] != first[keys]).any(axis=1)]
    second = others.iloc[0] if len(others) else ranked.iloc[1] if len(ranked) > 1 else None
    chosen = [row for row in (first, second) if row is not None]
    scores, names = [], []
    for row in chosen:
        done = runs[(runs["experiment"] == row["experiment"]) & (runs["state"] == "finished")]
        scores.append(read_json(done.iloc[0]["folder"] / "metrics.json")["per_class"])
        names.append(f"{row['experiment']}, seed {done.iloc[0]['seed']}")
    return draw_classes(*scores, names=names)


def _panels_of_best(frame: pd.DataFrame) -> list[Path]:
    """Return the panels that the best run painted last."""
    done = frame[frame["n"] > 0]
    if done.empty:
        return []
    work = RunFolder(Path(done.loc[done["mIoU"].idxmax()]["folder"])).work
    panels = list((work / "panels").rglob("*.png"))
    last = max((_number_in(path.parent.name) for path in panels), default=0)
    return sorted(path for path in panels if _number_in(path.parent.name) == last)[:MOST_PANELS]


def _number_in(name: str) -> int:
    digits = "".join(filter(str.isdigit, name))
    return int(digits or 0)


def draw_panels(paths: Sequence[Path]) -> Figure:
    """Set pictures of predictions, as `data.painting.paint_panel` makes them, under each other."""
    pictures = [matplotlib.image.imread(path)[..., :3] for path in paths]
    width = max(picture.shape[1] for picture in pictures)
    # One scale for all: narrower pictures get a white margin instead of being blown up.
    padded = [
        np.pad(picture, ((0, 0), (0, width - picture.shape[1]), (0, 0)), constant_values=1)
        for picture in pictures
    ]
    stack = np.concatenate(padded)
    figure = Figure((stack.shape[1] / 100, stack.shape[0] / 100))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow(stack, interpolation="none")
    axes.set_axis_off()
    return figure


def draw_classes(
    first: Sequence[dict[str, Any]],
    second: Sequence[dict[str, Any]] | None = None,
    names: Sequence[str] = (),
) -> Figure:
    """Draw the IoU of every class, of one run or of two side by side.

    Args:
        first: `per_class` of a `metrics.json`; classes without IoU are left out.
        second: the same of another run; classes are sorted by the difference.
        names: of the runs, for the legend.
    """
    rows = _class_rows(first, second)
    columns = max(1, math.ceil(len(rows) / ROWS))
    height = 1.2 + 0.17 * math.ceil(len(rows) / columns)
    figure = Figure((4.5 * columns + 0.5, max(2.5, height)), layout="constrained")
    per_column = math.ceil(len(rows) / columns) or 1
    for column in range(columns):
        axes = figure.add_subplot(1, columns, column + 1)
        _draw_class_column(
            axes, rows[column * per_column : (column + 1) * per_column], second, names
        )
    handles, labels = axes.get_legend_handles_labels()
    if names:
        figure.legend(handles, labels, loc="outside upper center", ncols=2, fontsize=8)
    return figure


def _class_rows(
    first: Sequence[dict[str, Any]], second: Sequence[dict[str, Any]] | None
) -> list[tuple[str, float, float]]:
    ious = {entry["name"]: entry["IoU"] for entry in second} if second else {}
    rows = [(entry["name"], entry["IoU"], ious.get(entry["name"], entry["IoU"])) for entry in first]
    rows = [row for row in rows if row[1] is not None and row[2] is not None]
    return sorted(rows, key=lambda row: (row[1] - row[2], row[1]), reverse=True)


def _draw_class_column(
    axes: Axes, rows: list[tuple[str, float, float]], second: Any, names: Sequence[str]
) -> None:
    heights = range(len(rows))
    ones, others = [row[1] for row in rows], [row[2] for row in rows]
    labels = [*names, "", ""]
    if second:
        axes.hlines(heights, ones, others, color="#999999", lw=1)
        axes.plot(others, heights, "o", ms=4, mfc="white", mec=COLOURS[1], label=labels[1])
    axes.plot(ones, heights, "o", ms=4, color=COLOURS[0], label=labels[0])
    axes.set_yticks(heights, [row[0].split(",")[0][:28] for row in rows], fontsize=6.5)
    axes.set(ylim=(len(rows) - 0.5, -0.5), xlim=(-2, 102), xlabel="IoU (%)")

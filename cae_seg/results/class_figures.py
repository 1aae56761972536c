"""Figures of classes: IoU of each, and which are taken for which others."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cae_seg.results.plotting import COLOURS, SCREEN, Size, add_note

ROWS = 50
PAPER_CLASSES = 25
MOST_CONFUSED = 25


def draw_classes(
    first: Sequence[dict[str, Any]],
    second: Sequence[dict[str, Any]] | None = None,
    names: Sequence[str] = (),
    size: Size = SCREEN,
) -> Figure:
    """Draw the IoU of every class, of one run or of two; for a paper those that differ most.

    Args:
        first: `per_class` of a `metrics.json`; classes without IoU are left out.
        second: the same of another run; classes are sorted by the difference.
        names: of the runs, for the legend.
        size: of the figure.
    """
    rows = _class_rows(first, second)
    if size.is_paper and len(rows) > PAPER_CLASSES:
        half = PAPER_CLASSES // 2
        rows = [*rows[: PAPER_CLASSES - half], *rows[-half:]]
    columns = max(1, math.ceil(len(rows) / ROWS))
    height = 1.2 + 0.017 * size.font * math.ceil(len(rows) / columns)
    width = size.width if size.is_paper else 4.5 * columns + 0.5
    figure = Figure((width, max(2.5, height)), layout="constrained")
    per_column = math.ceil(len(rows) / columns) or 1
    for column in range(columns):
        axes = figure.add_subplot(1, columns, column + 1)
        part = rows[column * per_column : (column + 1) * per_column]
        _draw_class_column(axes, part, second, names, 0.65 * size.font)
    handles, labels = axes.get_legend_handles_labels()
    if names:
        places = {"ncols": 1 if size.is_paper else 2, "fontsize": size.small}
        figure.legend(handles, labels, loc="outside upper center", **places)
    return figure


def _class_rows(
    first: Sequence[dict[str, Any]], second: Sequence[dict[str, Any]] | None
) -> list[tuple[str, float, float]]:
    ious = {entry["name"]: entry["IoU"] for entry in second} if second else {}
    rows = [(entry["name"], entry["IoU"], ious.get(entry["name"], entry["IoU"])) for entry in first]
    rows = [row for row in rows if row[1] is not None and row[2] is not None]
    return sorted(rows, key=lambda row: (row[1] - row[2], row[1]), reverse=True)


def _draw_class_column(
    axes: Axes,
    rows: list[tuple[str, float, float]],
    second: Any,
    names: Sequence[str],
    font: float,
) -> None:
    heights = range(len(rows))
    ones, others = [row[1] for row in rows], [row[2] for row in rows]
    labels = [*names, "", ""]
    if second:
        axes.hlines(heights, ones, others, color="#999999", lw=1)
        axes.plot(others, heights, "o", ms=4, mfc="white", mec=COLOURS[1], label=labels[1])
    axes.plot(ones, heights, "o", ms=4, color=COLOURS[0], label=labels[0])
    axes.set_yticks(heights, [short_name(row[0])[:28] for row in rows], fontsize=font)
    axes.set(ylim=(len(rows) - 0.5, -0.5), xlim=(-2, 102), xlabel="IoU (%)")


def draw_confusion(counts: Any, names: Sequence[str], title: str, size: Size = SCREEN) -> Figure:
    """Draw which classes are predicted for the pixels of each class.

    Args:
        counts: (C, C) pixels; rows are true classes, columns predicted ones.
        names: of the C classes. Of many the ones with most wrongly predicted pixels are drawn.
        title: written above.
        size: of the figure.
    """
    counts = np.asarray(counts, float)
    wrong = counts.sum(1) + counts.sum(0) - 2 * counts.diagonal()
    present = np.flatnonzero(counts.sum(1) > 0)
    chosen = np.sort(present[np.argsort(-wrong[present], kind="stable")][:MOST_CONFUSED])
    shares = 100 * counts[chosen][:, chosen] / counts[chosen].sum(1, keepdims=True)
    figure = Figure((size.width, 0.9 * size.width), layout="constrained")
    axes = figure.add_subplot()
    picture = axes.imshow(shares, cmap="Greys", vmin=0, vmax=100)
    labels, font = [short_name(names[i])[:18] for i in chosen], 0.65 * size.font
    axes.set_xticks(range(len(chosen)), labels, rotation=90, fontsize=font)
    axes.set_yticks(range(len(chosen)), labels, fontsize=font)
    axes.set(xlabel="predicted class", ylabel="true class")
    axes.grid(False)
    bar = figure.colorbar(picture, shrink=0.8)
    bar.set_label("share of the true class's pixels (%)", fontsize=size.small)
    left_out = len(present) - len(chosen)
    which = f"; the {len(chosen)} classes with most wrong pixels" if left_out > 0 else ""
    add_note(axes, f"{title}{which}", size)
    return figure


def short_name(name: str) -> str:
    """Return the first of the synonyms that a class of ADE20K is named by."""
    return name.split(",")[0]

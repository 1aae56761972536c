"""What all figures share: sizes, looks of lines, labels at the lines, reproducible files."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cae_seg.files import atomic_writer

MARKERS = "osD^vP<>"
DASHES = ("-", "--", ":", "-.")
COLOURS = ("#1b1b1b", "#0b61a4", "#c1440e", "#3f7f3f", "#7a4fa3", "#8a6d00")
FORMATS = ("svg", "png", "pdf")
STYLE = {
    "svg.hashsalt": "cae-seg",
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "figure.facecolor": "white",
}
WITHOUT_DATE = {
    "svg": {"Date": None},
    "png": {"Software": None},
    "pdf": {"CreationDate": None, "Producer": None, "Creator": None},
}
PAPER_WIDTH = 3.25  # inches, one column of a two-column page


@dataclass(frozen=True)
class Size:
    """How large figures are.

    Attributes:
        width: inches.
        height: inches, of figures whose height does not follow from their content.
        font: points; small text is 0.8 times as large.
        line: width of lines, points.
    """

    width: float = 7.0
    height: float = 4.5
    font: float = 10.0
    line: float = 1.5

    @property
    def small(self) -> float:
        """Font size of notes and labels at lines, points."""
        return 0.8 * self.font

    @property
    def is_paper(self) -> bool:
        """Whether figures are for one column of a paper."""
        return self.width <= PAPER_WIDTH

    def style(self) -> dict[str, Any]:
        """Return the settings of matplotlib for this size."""
        return {**STYLE, "font.size": self.font, "lines.linewidth": self.line}


SCREEN = Size()
PAPER = Size(width=PAPER_WIDTH, height=2.5, font=8.0, line=1.0)


def look(number: int) -> dict[str, Any]:
    """Return colour, marker and dashes of a line; neighbours also differ without colour."""
    return {
        "marker": MARKERS[number % len(MARKERS)],
        "linestyle": DASHES[number % len(DASHES)],
        "color": COLOURS[number % len(COLOURS)],
    }


def new_axes(size: Size) -> tuple[Axes, Figure]:
    """Return a figure with one pair of axes."""
    figure = Figure((size.width, size.height), layout="constrained")
    return figure.add_subplot(), figure


def add_note(axes: Axes, text: str, size: Size) -> None:
    """Write above the axes what is drawn."""
    axes.set_title(text, loc="left", fontsize=size.small, color="#444444", wrap=True)


def note_nothing(axes: Axes) -> None:
    """Write that there is nothing to draw."""
    axes.text(0.5, 0.5, "no finished run yet", ha="center", transform=axes.transAxes)


def label_lines(
    axes: Axes, ends: Sequence[tuple[float, float, str, str]], size: Size, font: float | None = None
) -> None:
    """Write the name of each line to the right of the axes, without overlaps.

    Args:
        axes: with all lines drawn and their limits settled.
        ends: x and y of a line's last point, its name, its colour.
        size: of the figure.
        font: size of the names, points.
    """
    font = font or size.small
    axes.autoscale_view()
    to_fraction = axes.transScale + axes.transLimits
    heights = [float(to_fraction.transform((x, y))[1]) for x, y, *_ in ends]
    gap = 1.45 * font / (72 * size.height * 0.75)
    for end, height in zip(ends, _spread(heights, gap), strict=True):
        x, y, name, colour = end
        axes.annotate(
            name,
            (x, y),
            xytext=(1.03, height),
            textcoords="axes fraction",
            color=colour,
            fontsize=font,
            va="center",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": colour,
                "lw": 0.5,
                "alpha": 0.5,
                "relpos": (0, 0.5),
            },
        )


def _spread(heights: Sequence[float], gap: float) -> list[float]:
    """Move heights apart to at least `gap`, keeping their order, around their centre, below 1."""
    order = sorted(range(len(heights)), key=heights.__getitem__)
    moved = [0.0] * len(heights)
    lowest = -float("inf")
    for index in order:
        moved[index] = lowest = max(heights[index], lowest + gap)
    if not moved:
        return []
    shift = max((sum(moved) - sum(heights)) / len(moved), max(moved) - (1 - gap / 2))
    return [height - shift for height in moved]


def save(figure: Figure, path: Path, size: Size = SCREEN) -> None:
    """Write a figure, the format being the file's suffix, reproducibly to the byte."""
    kind = path.suffix[1:]
    buffer = io.BytesIO()
    with mpl.rc_context(size.style()):
        figure.savefig(
            buffer, format=kind, dpi=300 if size.is_paper else 150, metadata=WITHOUT_DATE[kind]
        )
    with atomic_writer(path) as stream:
        stream.write(buffer.getvalue())

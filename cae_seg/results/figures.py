"""The figures of a study, as SVG, PNG and PDF.

Lines differ in markers and dashes as well as in colour. The same results give the same bytes: no
dates, fixed identifiers.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.image
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from cae_seg.files import read_json
from cae_seg.results.aggregate import COMBINATION, aggregate
from cae_seg.results.class_figures import draw_classes, draw_confusion
from cae_seg.results.collect import Sheets, collect_runs
from cae_seg.results.curves import draw_iterations, draw_learning_rates, draw_losses
from cae_seg.results.plotting import (
    FORMATS,
    PAPER,
    SCREEN,
    Size,
    new_axes,
    note_nothing,
    save,
)
from cae_seg.run.paths import RunDir

MOST_PICTURES = 4


def write_figures(sheets: Sheets, out_dir: Path, *, paper: bool = False) -> list[Path]:
    """Draw the results of sheets.

    `miou_by_learning_rate`, `miou_by_iteration`, `loss_by_iteration` and `per_class`; and, where
    the best run kept them, `confusion` and `predictions`.

    Args:
        sheets: one sheet or several; runs that are not finished are left out.
        out_dir: where `<name>.svg`, `<name>.png` and `<name>.pdf` go.
        paper: draw for one column of a paper, 3.25 inches wide.

    Returns:
        The files written.
    """
    size = PAPER if paper else SCREEN
    runs = collect_runs(sheets)
    frame = aggregate(runs)
    with mpl.rc_context(size.style()):
        figures = {
            "miou_by_learning_rate": draw_learning_rates(frame, runs, size),
            "miou_by_iteration": draw_iterations(runs, size),
            "loss_by_iteration": draw_losses(runs, size),
            "per_class": _draw_two_best(frame, runs, size),
            **dict(_of_best_run(frame, runs, size)),
        }
    paths = [Path(out_dir) / f"{name}.{kind}" for name in figures for kind in FORMATS]
    for path in paths:
        save(figures[path.stem], path, size)
    return paths


def _draw_two_best(frame: pd.DataFrame, runs: pd.DataFrame, size: Size) -> Figure:
    """Compare the best combination with the best of another pretraining, or else the second."""
    ranked = _of_one_data_set(frame).sort_values("mIoU", ascending=False, kind="stable")
    if ranked.empty:
        axes, figure = new_axes(size)
        note_nothing(axes)
        return figure
    first = ranked.iloc[0]
    others = ranked[(ranked[list(COMBINATION)] != first[list(COMBINATION)]).any(axis=1)]
    second = others.iloc[:1] if len(others) else ranked.iloc[1:2]
    chosen = [_first_run(row, runs) for _, row in pd.concat([ranked.iloc[:1], second]).iterrows()]
    scores = [read_json(RunDir(run["folder"]).metrics_file)["per_class"] for run in chosen]
    return draw_classes(*scores, names=[_name(run) for run in chosen], size=size)


def _of_one_data_set(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the combinations with results on the first data set that has any."""
    done = frame[frame["n"] > 0]
    return done[done["data_set"] == done["data_set"].iloc[0]] if len(done) else done


def _first_run(row: pd.Series, runs: pd.DataFrame) -> pd.Series:
    """Return the first finished run of a combination."""
    same = (runs["experiment"] == row["experiment"]) & (runs["sheet"] == row["sheet"])
    return runs[same & (runs["state"] == "finished")].iloc[0]


def _name(run: pd.Series) -> str:
    return f"{run['experiment']}, seed {run['seed']}"


def _of_best_run(
    frame: pd.DataFrame, runs: pd.DataFrame, size: Size
) -> Iterator[tuple[str, Figure]]:
    """Draw what the first run of the best combination kept."""
    done = _of_one_data_set(frame)
    if done.empty:
        return
    run = _first_run(done.loc[done["mIoU"].idxmax()], runs)
    metrics: dict[str, Any] = read_json(RunDir(run["folder"]).metrics_file)
    if metrics.get("confusion"):
        names = [entry["name"] for entry in metrics["per_class"]]
        counts = [[int(pixels) for pixels in row.split()] for row in metrics["confusion"]]
        yield "confusion", draw_confusion(counts, names, _name(run), size)
    pictures = _last_visualizations(RunDir(run["folder"]))
    if pictures:
        yield "predictions", draw_comparisons(pictures, size)


def _last_visualizations(run: RunDir) -> list[Path]:
    """Return the visualizations of a run's last evaluation."""
    pictures = list(run.work.visualizations.rglob("*.png"))
    last = max((_number_in(path.parent.name) for path in pictures), default=0)
    return sorted(path for path in pictures if _number_in(path.parent.name) == last)[:MOST_PICTURES]


def _number_in(name: str) -> int:
    digits = "".join(filter(str.isdigit, name))
    return int(digits or 0)


def draw_comparisons(paths: Sequence[Path], size: Size = SCREEN) -> Figure:
    """Stack pictures that `data.visualize.draw_comparison` has drawn."""
    pictures = [matplotlib.image.imread(path)[..., :3] for path in paths]
    width = max(picture.shape[1] for picture in pictures)
    # One scale for all: narrower pictures get a white margin instead of being blown up.
    padded = [
        np.pad(picture, ((0, 0), (0, width - picture.shape[1]), (0, 0)), constant_values=1)
        for picture in pictures
    ]
    stack = np.concatenate(padded)
    inches = size.width if size.is_paper else width / 100
    figure = Figure((inches, inches * stack.shape[0] / width))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow(stack, interpolation="none")
    axes.set_axis_off()
    return figure

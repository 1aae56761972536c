"""Figures of mIoU over the learning rate, and of mIoU and loss over the iterations."""

from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cae_seg.results.aggregate import COMBINATION
from cae_seg.results.plotting import (
    COLOURS,
    DASHES,
    MARKERS,
    SCREEN,
    Size,
    add_note,
    label_lines,
    look,
    note_nothing,
)
from cae_seg.run.paths import RunDir

MOST_LABELS = 16
MOST_POINTS = 300

Points = dict[int, float]  # iteration → value


def draw_learning_rates(frame: pd.DataFrame, runs: pd.DataFrame, size: Size = SCREEN) -> Figure:
    """Draw mean mIoU over the learning rate, one line per pretraining length.

    Bars are the standard deviation over seeds, where there are two or more; dots are the seeds,
    crosses the published values. Each data set has axes of its own.
    """
    figure, panels = _panels(frame, size)
    for axes, of_data, data in panels:
        ends = []
        for number, (label, group) in enumerate(_pretrainings(of_data)):
            group = group.assign(rate=group["learning_rate"].astype(float)).sort_values("rate")
            points = _draw_group(axes, group, runs, look(number))
            if points:
                ends.append((*points[-1], label, look(number)["color"]))
        rates = {float(text): text for text in of_data["learning_rate"]}
        axes.set_xscale("log")
        axes.set_xticks(list(rates), list(rates.values()))
        axes.minorticks_off()
        axes.set(xlabel="learning rate", ylabel="mIoU (%)")
        if not ends:
            note_nothing(axes)
        label_lines(axes, ends, size)
        done = of_data[of_data["n"] > 0]
        crosses = "; ×: published" if of_data["published_miou"].notna().any() else ""
        add_note(axes, f"{data}{_bars_note(done)}{crosses}" if len(done) else data, size)
    return figure


def _panels(frame: pd.DataFrame, size: Size) -> tuple[Figure, list[tuple[Axes, pd.DataFrame, str]]]:
    """Return a figure with axes for each data set, as scores on different data do not compare.

    Returns:
        The figure, and for each data set its axes, its rows and what notes begin with.
    """
    parts = list(frame.groupby("data_set", sort=False))
    figure = Figure((size.width, size.height * len(parts)), layout="constrained")
    rows = figure.subplots(len(parts), squeeze=False)[:, 0]
    return figure, [
        (axes, part, f"{data}: " if len(parts) > 1 else "")
        for axes, (data, part) in zip(rows, parts, strict=True)
    ]


def _draw_group(
    axes: Axes, group: pd.DataFrame, runs: pd.DataFrame, style: dict
) -> list[tuple[float, float]]:
    """Draw one pretraining length; return its points from left to right."""
    colour = style["color"]
    published, done = group.dropna(subset="published_miou"), group[group["n"] > 0]
    axes.plot(published["rate"], published["published_miou"], "x", color=colour, markersize=9)
    axes.plot(done["rate"], done["mIoU"], **style)
    several = done[done["n"] > 1]
    if len(several):
        bars = {"fmt": "none", "capsize": 4, "ecolor": colour}
        axes.errorbar(several["rate"], several["mIoU"], several["mIoU_std"], **bars)
    seeds = runs.merge(several[["sheet", "experiment"]], on=["sheet", "experiment"])
    axes.plot(seeds["learning_rate"].astype(float), seeds["mIoU"], ".", color=colour, alpha=0.5)
    shown = done[["rate", "mIoU"]] if len(done) else published[["rate", "published_miou"]]
    return list(shown.itertuples(index=False, name=None))


def _bars_note(done: pd.DataFrame) -> str:
    counts = f"n = {done['n'].min()}"
    if done["n"].min() != done["n"].max():
        counts += f" to {done['n'].max()}"
    if done["n"].max() == 1:
        return f"one seed per point ({counts}), no spread known"
    return f"mean over {counts} seeds; bars: ± standard deviation where n > 1; dots: seeds"


def _pretrainings(frame: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    several = {key for key in COMBINATION if frame[key].nunique() > 1}
    order = ["backbone", "method", "pretraining_epochs", "head"]
    for values, group in frame.groupby(order, sort=True):
        backbone, method, epochs, head = values
        parts = [f"{backbone}, {method + ' ' if 'method' in several else ''}{epochs} epochs"]
        parts += [head] if "head" in several else []
        yield ", ".join(parts), group


def draw_iterations(runs: pd.DataFrame, size: Size = SCREEN) -> Figure:
    """Draw mIoU at every evaluation during training, one line per combination."""
    return _draw_curves(runs, _evaluations, "mIoU (%)", size)


def draw_losses(runs: pd.DataFrame, size: Size = SCREEN) -> Figure:
    """Draw the training loss, averaged over short spans, one line per combination."""
    return _draw_curves(runs, _losses, "training loss", size, markers=False)


def _draw_curves(
    runs: pd.DataFrame,
    read: Callable[[RunDir], Points],
    quantity: str,
    size: Size,
    *,
    markers: bool = True,
) -> Figure:
    figure, panels = _panels(runs, size)
    for axes, of_data, data in panels:
        ends, most = [], 0
        for number, (label, group) in enumerate(_pretrainings(of_data)):
            for position, (rate, of_rate) in enumerate(group.groupby("learning_rate", sort=False)):
                seeds = [read(RunDir(folder)) for folder in of_rate["folder"]]
                seeds = [points for points in seeds if points]
                if not seeds:
                    continue
                style = {
                    "color": COLOURS[number % len(COLOURS)],
                    "linestyle": DASHES[position % len(DASHES)],
                    "marker": MARKERS[position % len(MARKERS)] if markers else None,
                }
                most = max(most, len(seeds))
                end = _draw_band(axes, seeds, style)
                ends.append((*end, f"{label}, {rate} (n={len(seeds)})", style["color"]))
        axes.set(xlabel="iteration", ylabel=quantity)
        _finish_curves(axes, ends, most, size, data)
    return figure


def _draw_band(axes: Axes, seeds: list[Points], style: dict) -> tuple[float, float]:
    """Draw the mean of the iterations that all seeds have, and the range between the seeds."""
    iterations = sorted(set.intersection(*(set(points) for points in seeds)))
    if not iterations:  # seeds with different intervals have no mean; the longest is drawn
        iterations = sorted(max(seeds, key=len))
        seeds = [max(seeds, key=len)]
    values = np.array([[points[i] for i in iterations] for points in seeds])
    mean = values.mean(axis=0)
    axes.plot(iterations, mean, markersize=4, **style)
    if len(seeds) > 1:
        low, high = values.min(axis=0), values.max(axis=0)
        axes.fill_between(iterations, low, high, color=style["color"], alpha=0.15, lw=0)
    return iterations[-1], mean[-1]


def _finish_curves(axes: Axes, ends: list, most: int, size: Size, data: str) -> None:
    bands = "; bands: lowest to highest seed" if most > 1 else ""
    add_note(axes, f"{data}mean over n seeds{bands}" if ends else data, size)
    if not ends:
        note_nothing(axes)
        return
    font = size.small if len(ends) <= MOST_LABELS // 2 else 0.75 * size.small
    if len(ends) > MOST_LABELS:  # one label per pretraining: its line that ends highest
        best: dict[str, tuple] = {}
        for end in sorted(ends, key=lambda end: end[1]):
            name = end[2].rsplit(",", 1)[0]
            best[name] = (*end[:2], name, end[3])
        ends = list(best.values())
    label_lines(axes, ends, size, font)


def _evaluations(run: RunDir) -> Points:
    lines = list(run.history().evaluations.values())
    if not lines and run.finished:
        lines = run.metadata().get("evaluations", [])
    return {line["iteration"]: line["mIoU"] for line in lines if line.get("mIoU") is not None}


def _losses(run: RunDir) -> Points:
    """Return mean losses of equal spans of iterations; few enough for a small file."""
    lines = [line for line in run.history().train.values() if line.get("loss")]
    if not lines:
        return {}
    span = -(-lines[-1]["iteration"] // MOST_POINTS)
    spans: dict[int, list[float]] = {}
    for line in lines:
        spans.setdefault(-(-line["iteration"] // span) * span, []).append(line["loss"])
    return {iteration: float(np.mean(losses)) for iteration, losses in spans.items()}

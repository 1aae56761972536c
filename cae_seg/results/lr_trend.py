"""The published claim, checked against a sweep.

"The better the pretraining, the smaller the best learning rate; the differences between learning
rates are small." Seeds scatter, so the best rate of a sweep is itself uncertain. The scatter is
taken to be the same in all cells and estimated from all of them together; with it, what the true
mean of every cell may be is drawn many times, and each draw is asked what it says of the claim.
"""

import itertools
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cae_seg.sheet.sheet import Sheet
from cae_seg.files import atomic_write_json, atomic_write_text
from cae_seg.results.collect import collect_runs, combine, open_sheet

SUPPORTED, CONTRADICTED, UNCLEAR = "supported", "contradicted", "not distinguishable"
SURE = 0.95
SMALL = 1.0  # points of mIoU; the published pretraining lengths lie 0.6 to 1.6 apart
DRAWS = 20_000


@dataclass(frozen=True)
class Length:
    """What a sweep says of one pretraining length.

    Attributes:
        epochs: of pretraining.
        best_rate: the learning rate with the highest mean mIoU, as the sheet writes it.
        probabilities: learning rate → probability that it is the best; empty without scatter.
        miou: mean mIoU of the best rate, percent.
        difference: between the best and the worst rate, points of mIoU.
        seeds: fewest seeds of a rate.
    """

    epochs: int
    best_rate: str
    probabilities: dict[str, float]
    miou: float
    difference: float
    seeds: int


@dataclass(frozen=True)
class Verdict:
    """The claim, as one backbone's sweep sees it."""

    backbone: str
    method: str
    rate_verdict: str
    rate_sentence: str
    size_verdict: str
    size_sentence: str
    lengths: list[Length] = field(default_factory=list)


def write_claim(sheet: Sheet | Path | str, out: Path) -> list[Verdict]:
    """Check the claim on a sheet's results; write `out` as Markdown and, beside it, as JSON."""
    sheet = open_sheet(sheet)
    runs = collect_runs(sheet)
    verdicts = check_claim(runs)
    atomic_write_text(out, _markdown(verdicts))
    atomic_write_json(
        out.with_suffix(".json"),
        {"schema": 1, "small": SMALL, "verdicts": [asdict(verdict) for verdict in verdicts]},
    )
    return verdicts


def check_claim(runs: pd.DataFrame) -> list[Verdict]:
    """Return a verdict for every backbone and pretraining method.

    Args:
        runs: what `collect.collect_runs` returns. Rows that cannot be compared with the others
            (other data, other iterations) and unfinished runs are left out.
    """
    frame = combine(runs)
    usable = set(frame.loc[frame["comparable"], "experiment"])
    done = runs[(runs["state"] == "finished") & runs["experiment"].isin(usable)]
    return [
        _check(backbone, method, done[(done["backbone"] == backbone) & (done["method"] == method)])
        for backbone, method in dict.fromkeys(zip(runs["backbone"], runs["method"], strict=True))
    ]


def _check(backbone: str, method: str, done: pd.DataFrame) -> Verdict:
    cells = {
        key: group["mIoU"].to_numpy()
        for key, group in done.groupby(["pretraining_epochs", "learning_rate"])
    }
    lengths = sorted({epochs for epochs, _ in cells})
    rates = [{rate for epochs, rate in cells if epochs == length} for length in lengths]
    common = sorted(set.intersection(*rates) if rates else (), key=float)
    if len(common) < 2:
        why = "no two learning rates were run at every pretraining length, so no best one is known"
        return Verdict(backbone, method, UNCLEAR, _sentence(UNCLEAR, why), UNCLEAR,
                       _sentence(UNCLEAR, why))  # fmt: skip
    table = [[cells[length, rate] for rate in common] for length in lengths]
    draws = _draw_means(table)
    found = [_length(*row, common) for row in zip(lengths, table, draws, strict=True)]
    rate_verdict, rate_why = _judge_rates(found, draws, common)
    size_verdict, size_why = _judge_size(found, draws)
    return Verdict(
        backbone,
        method,
        rate_verdict,
        _sentence(rate_verdict, rate_why),
        size_verdict,
        _sentence(size_verdict, size_why),
        found,
    )


def _draw_means(table: list[list[np.ndarray]]) -> np.ndarray:
    """Draw what the true mean of every cell may be.

    Returns:
        (lengths, draws, rates); no draws where no cell has two seeds, for then the scatter is
        unknown.
    """
    means = np.array([[cell.mean() for cell in row] for row in table])
    counts = np.array([[len(cell) for cell in row] for row in table])
    freedom = int((counts - 1).sum())
    if freedom == 0:
        return np.empty((len(table), 0, means.shape[1]))
    squares = sum(((cell - cell.mean()) ** 2).sum() for row in table for cell in row)
    generator = np.random.default_rng(0)
    scatter = np.sqrt(squares / generator.chisquare(freedom, DRAWS))
    noise = generator.standard_normal((len(table), DRAWS, means.shape[1]))
    return means[:, None] + noise * scatter[:, None] / np.sqrt(counts)[:, None]


def _length(epochs: int, cells: list[np.ndarray], draws: np.ndarray, rates: list[str]) -> Length:
    means = [float(cell.mean()) for cell in cells]
    best = np.bincount(draws.argmax(axis=1), minlength=len(rates)) if len(draws) else None
    return Length(
        epochs=int(epochs),
        best_rate=rates[int(np.argmax(means))],
        probabilities={}
        if best is None
        else {rate: float(count / len(draws)) for rate, count in zip(rates, best, strict=True)},
        miou=max(means),
        difference=max(means) - min(means),
        seeds=min(len(cell) for cell in cells),
    )


def _judge_rates(lengths: list[Length], draws: np.ndarray, rates: list[str]) -> tuple[str, str]:
    """Judge whether the best rate falls from one pretraining length to the next."""
    if len(lengths) < 2:
        return UNCLEAR, f"only one pretraining length was run ({_trend_text(lengths)})"
    if draws.shape[1] == 0:
        best_means = _trend_text(lengths)
        return UNCLEAR, f"with one seed a cell the scatter is unknown (best: {best_means})"
    logs = np.log([float(rate) for rate in rates])
    best = logs[draws.argmax(axis=2)]  # lengths, draws
    # The trend over all lengths, and not every single step: with many lengths of pure scatter
    # some step rises almost surely.
    steps = np.arange(len(lengths)) - (len(lengths) - 1) / 2
    trend = np.round(steps @ best, 9)
    falls, same = float((trend < 0).mean()), float((trend == 0).mean())
    rise = _surest_rise(lengths, best)
    text, seeds = _trend_text(lengths), _seeds(lengths)
    if rise is not None:
        return CONTRADICTED, f"the best learning rate rises {rise}: {text} ({seeds})"
    if falls >= SURE:
        return SUPPORTED, f"the best learning rate falls: {text} (probability {falls:.2f}, {seeds})"
    if falls <= 1 - SURE:
        what = "stays the same" if same >= 0.5 else "does not fall"
        probability = f"probability that it falls {falls:.2f}"
        return CONTRADICTED, f"the best learning rate {what}: {text} ({probability}, {seeds})"
    why = f"the highest means are {text}, but the seeds scatter too much to tell"
    return UNCLEAR, f"{why} (probability that the best rate falls {falls:.2f}, {seeds})"


def _trend_text(lengths: list[Length]) -> str:
    return ", ".join(f"{length.best_rate} at {length.epochs} epochs" for length in lengths)


def _surest_rise(lengths: list[Length], best: np.ndarray) -> str | None:
    """Name two lengths of which the longer surely has the larger best rate."""
    for (i, shorter), (j, longer) in itertools.combinations(enumerate(lengths), 2):
        if (best[j] > best[i]).mean() >= SURE:
            return f"from {shorter.epochs} to {longer.epochs} epochs"
    return None


def _judge_size(lengths: list[Length], draws: np.ndarray) -> tuple[str, str]:
    """Judge whether the best and the worst rate of every length lie less than `SMALL` apart."""
    largest = max(lengths, key=lambda length: length.difference)
    text = f"{largest.difference:.2f} points of mIoU, at {largest.epochs} epochs"
    if draws.shape[1] == 0:
        return UNCLEAR, f"with one seed a cell the scatter is unknown (largest difference: {text})"
    apart = draws.max(axis=2) - draws.min(axis=2)  # lengths, draws
    small = float((apart < SMALL).all(axis=0).mean())
    particulars = f"probability {small:.2f} that all are under {SMALL:g}, {_seeds(lengths)}"
    text = f"the largest difference between learning rates is {text} ({particulars})"
    verdict = SUPPORTED if small >= SURE else CONTRADICTED if _surely_large(draws) else UNCLEAR
    return verdict, text


def _surely_large(draws: np.ndarray) -> bool:
    """Say whether two given rates surely lie apart; scatter alone makes *some* two do so."""
    pairs = itertools.permutations(range(draws.shape[2]), 2)
    return any(
        ((of_length[:, i] - of_length[:, j]) >= SMALL).mean() >= SURE
        for i, j in pairs
        for of_length in draws
    )


def _seeds(lengths: list[Length]) -> str:
    number = min(length.seeds for length in lengths)
    return f"{number} seed{'s' if number > 1 else ''} or more a cell"


def _sentence(verdict: str, why: str) -> str:
    name = f"{verdict} with these seeds" if verdict == UNCLEAR else verdict
    return f"{name[0].upper()}{name[1:]}: {why}."


def _markdown(verdicts: list[Verdict]) -> str:
    lines = ["# The published claim", ""]
    for verdict in verdicts:
        lines += [
            f"## {verdict.backbone}, pretrained by {verdict.method}",
            "",
            "- *The better the pretraining, the smaller the best learning rate.* "
            + verdict.rate_sentence,
            f"- *The differences between learning rates are small.* {verdict.size_sentence}",
            "",
        ]
        if verdict.lengths:
            lines += _lengths_table(verdict.lengths)
    lines += [
        f"A sentence counts as supported, or as contradicted, from a probability of {SURE} on. "
        f"Small means under {SMALL:g} point of mIoU. Only learning rates "
        "run at every pretraining length are compared.",
        "",
    ]
    return "\n".join(lines)


def _lengths_table(lengths: list[Length]) -> list[str]:
    rows = ["| Epochs | Best learning rate | mIoU | Largest difference | Best with probability |",
            "|---|---|---|---|---|"]  # fmt: skip
    for length in lengths:
        chances: Any = ", ".join(f"{k}: {v:.2f}" for k, v in length.probabilities.items())
        rows.append(
            f"| {length.epochs} | {length.best_rate} | {length.miou:.2f} "
            f"| {length.difference:.2f} | {chances or 'unknown'} |"
        )
    return [*rows, ""]

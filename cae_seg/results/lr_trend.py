"""Test the published claim about learning rates on the runs of a sweep.

The claim: the better the pretraining, the smaller the best learning rate; the differences between
learning rates are small. Each half is tested by itself, with an error rate of at most
1 - CONFIDENCE whatever the true means are:

* Best learning rate: simultaneous confidence sets of the best rate at every pretraining length
  (Hsu, "Constrained simultaneous confidence intervals for multiple comparisons with the best",
  Annals of Statistics 12, 1984). A verdict holds if every choice from the sets agrees with it.
* Small: every pair of rates is equivalent within SMALL_DIFF (two one-sided t-tests, joined as an
  intersection-union test: Berger and Hsu, Statistical Science 11, 1996). Not small: some pair
  differs by more, corrected for the number of pairs as by Tukey and Kramer.

The scatter of seeds is taken to be the same in all cells (pretraining length × learning rate) and
estimated from all of them together.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
import pandas as pd
from scipy import stats

from cae_seg.results.aggregate import COMPARED, aggregate

SUPPORTED, CONTRADICTED, INCONCLUSIVE = "supported", "contradicted", "inconclusive"
CONFIDENCE = 0.95
SMALL_DIFF = 1.0  # points of mIoU; the published pretraining lengths are 0.6 to 1.6 apart
DRAWS = 20_000
LEAST_SCATTER = 1e-6  # points of mIoU; keeps quotients finite where all seeds agree exactly


@dataclass(frozen=True)
class Finding:
    """The verdict on one half of the claim.

    Attributes:
        verdict: `SUPPORTED`, `CONTRADICTED` or `INCONCLUSIVE`.
        holds: whether the claim holds for the mean scores, seeds' scatter aside; None if unknown.
        confidence: in what `holds` states; it decides the verdict. None if it cannot be computed.
        reason: why there is no confidence; empty if there is one.
    """

    verdict: str
    holds: bool | None = None
    confidence: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class EpochGroup:
    """One pretraining length of a sweep.

    Attributes:
        epochs: of pretraining.
        best_rate: learning rate with the highest mean mIoU, as written in the sheet.
        plausible: rates that may be the best, at `CONFIDENCE` for all lengths together.
        means: learning rate → mean mIoU, percent.
        seeds: learning rate → number of seeds.
    """

    epochs: int
    best_rate: str
    plausible: list[str]
    means: dict[str, float]
    seeds: dict[str, int]

    @property
    def difference(self) -> float:
        """The best rate's mean minus the worst's, points of mIoU."""
        return max(self.means.values()) - min(self.means.values())


@dataclass(frozen=True)
class TrendTest:
    """Both halves of the claim, for one backbone and pretraining method.

    Attributes:
        among: head and data set, where there are several.
        trend: the best learning rate falls with the length of pretraining.
        size: all learning rates of a length are within `SMALL_DIFF`.
        scatter: pooled standard deviation of seeds, points of mIoU; None if no cell has two.
        freedom: degrees of freedom of `scatter`.
    """

    backbone: str
    method: str
    trend: Finding
    size: Finding
    groups: list[EpochGroup] = field(default_factory=list)
    scatter: float | None = None
    freedom: int = 0
    among: str = ""

    @property
    def cells(self) -> int:
        """Number of combinations of pretraining length and learning rate compared."""
        return sum(len(group.seeds) for group in self.groups)

    @property
    def runs(self) -> int:
        """Number of runs compared."""
        return sum(sum(group.seeds.values()) for group in self.groups)

    @property
    def single_seed_cells(self) -> int:
        """Number of cells with one seed; their scatter is that of the other cells."""
        return sum(n == 1 for group in self.groups for n in group.seeds.values())


def check_claim(runs: pd.DataFrame) -> list[TrendTest]:
    """Return a test for every backbone and pretraining method, and for each head and data set.

    Args:
        runs: what `collect.collect_runs` returns. Rows that cannot be compared with the others
            (other data, other iterations) and unfinished runs are left out.
    """
    frame = aggregate(runs)
    usable = frame.loc[frame["comparable"], ["sheet", "experiment"]]
    done = runs[runs["state"] == "finished"].merge(usable, on=["sheet", "experiment"])
    tests = []
    several = [key for key in ("head", "data_set") if runs[key].nunique() > 1]
    for _, group in runs.groupby(list(COMPARED), sort=False):
        first = group.iloc[0]
        chosen = done[(done[list(COMPARED)] == first[list(COMPARED)]).all(axis=1)]
        cells = chosen.dropna(subset="mIoU").groupby(["pretraining_epochs", "learning_rate"])
        found = {key: list(cell["mIoU"]) for key, cell in cells}
        test = run_test(found, first["backbone"], first["method"])
        tests.append(replace(test, among=", ".join(first[key] for key in several)))
    return tests


def run_test(
    cells: Mapping[tuple[int, str], Sequence[float]], backbone: str = "", method: str = ""
) -> TrendTest:
    """Test the claim on scores.

    Args:
        cells: (pretraining epochs, learning rate) → mIoU of each seed, percent. Only rates that
            were run at every length are compared.
        backbone: name for the result.
        method: name for the result.
    """
    lengths = sorted({epochs for epochs, _ in cells})
    rates_by_length = [{rate for epochs, rate in cells if epochs == e} for e in lengths]
    rates = sorted(set.intersection(*rates_by_length) if lengths else (), key=float)
    if len(rates) < 2:
        reason = "fewer than two learning rates were run at every pretraining length"
        unknown = Finding(INCONCLUSIVE, reason=reason)
        return TrendTest(backbone, method, unknown, unknown)
    sweep = _Sweep([[np.asarray(cells[e, rate], float) for rate in rates] for e in lengths])
    return TrendTest(
        backbone,
        method,
        _test_trend(sweep),
        _test_size(sweep),
        _groups(sweep, lengths, rates),
        sweep.scatter if sweep.freedom else None,
        sweep.freedom,
    )


class _Sweep:
    """Means and scatter of a full grid of lengths × rates; rates ascend along the second axis."""

    def __init__(self, scores: list[list[np.ndarray]]) -> None:
        self.means = np.array([[cell.mean() for cell in row] for row in scores])  # lengths, rates
        self.counts = np.array([[len(cell) for cell in row] for row in scores])
        self.freedom = int((self.counts - 1).sum())
        squares = sum(((cell - cell.mean()) ** 2).sum() for row in scores for cell in row)
        self.scatter = max(float(np.sqrt(squares / max(1, self.freedom))), LEAST_SCATTER)

    @property
    def differences(self) -> np.ndarray:
        """Mean of the first rate minus that of the second: (lengths, rates, rates)."""
        return self.means[:, :, None] - self.means[:, None, :]

    @property
    def errors(self) -> np.ndarray:
        """Standard errors of `differences`."""
        return self.scatter * _error_factors(self.counts)

    @property
    def pivots(self) -> tuple[np.ndarray, np.ndarray]:
        """What `_pivots` returns for these numbers of seeds."""
        return _pivots(tuple(map(tuple, self.counts.tolist())), self.freedom)

    @property
    def exclusion(self) -> np.ndarray:
        """Critical value up to which a rate is excluded as its length's best; 0 for the top one."""
        return (self.differences / self.errors).max(axis=1)


def _error_factors(counts: np.ndarray) -> np.ndarray:
    return np.sqrt(1 / counts[:, :, None] + 1 / counts[:, None, :])


@lru_cache(maxsize=8)
def _pivots(counts: tuple[tuple[int, ...], ...], freedom: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw the errors of studentised differences, which depend on the numbers of seeds only.

    Returns:
        Sorted draws of the largest error in favour of any rate over its length's truly best one,
        and of the largest error of any difference.
    """
    numbers = np.array(counts)
    generator = np.random.default_rng(0)
    scatter = np.sqrt(generator.chisquare(freedom, DRAWS) / freedom)
    means = generator.standard_normal((DRAWS, *numbers.shape)) / np.sqrt(numbers)
    errors = (means[..., :, None] - means[..., None, :]) / _error_factors(numbers)
    against = errors.max(axis=2) / scatter[:, None, None]  # draws, lengths, rates
    # Where the numbers of seeds differ it matters which rate is the best: take the worst case.
    worst = np.quantile(against, CONFIDENCE, axis=0).argmax(axis=1)
    against_best = against[:, np.arange(len(worst)), worst].max(axis=1)
    return np.sort(against_best), np.sort(against.max(axis=(1, 2)))


def _confidence(draws: np.ndarray, critical: float) -> float:
    """Return the share of draws below a critical value."""
    return float(np.searchsorted(draws, critical) / len(draws))


def _test_trend(sweep: _Sweep) -> Finding:
    """Test that the best rate never rises with the length, and is lower at the longest."""
    if len(sweep.means) < 2:
        return Finding(INCONCLUSIVE, reason="only one pretraining length was run")
    exclusion = sweep.exclusion
    holds = _can_fall(exclusion <= 0)
    if sweep.freedom == 0:
        return _without_scatter(holds)
    opposite = _can_not_fall if holds else _can_fall
    # Sets grow with the critical value: the first that admits the opposite ends the confidence.
    limits = (limit for limit in np.unique(exclusion) if opposite(exclusion <= limit))
    return _decide(holds, _confidence(sweep.pivots[0], next(limits, np.inf)))


def _without_scatter(holds: bool) -> Finding:
    return Finding(INCONCLUSIVE, holds, reason="no cell has two seeds, so scatter is unknown")


def _decide(holds: bool, confidence: float) -> Finding:
    sure = confidence >= CONFIDENCE
    verdict = (SUPPORTED if holds else CONTRADICTED) if sure else INCONCLUSIVE
    return Finding(verdict, holds, confidence)


def _can_fall(plausible: np.ndarray) -> bool:
    """Say whether some choice of plausible rates never rises and ends lower than it begins."""
    first = previous = int(np.flatnonzero(plausible[0])[-1])
    for of_length in plausible[1:-1]:
        lower = np.flatnonzero(of_length[: previous + 1])
        if not len(lower):
            return False
        previous = int(lower[-1])
    last = int(np.flatnonzero(plausible[-1])[0])
    return last <= previous and last < first


def _can_not_fall(plausible: np.ndarray) -> bool:
    """Say whether some choice of plausible rates rises somewhere or ends where it began."""
    lowest = [int(np.flatnonzero(row)[0]) for row in plausible]
    highest = [int(np.flatnonzero(row)[-1]) for row in plausible]
    rises = any(high > low for low, high in zip(lowest[:-1], highest[1:], strict=True))
    return rises or highest[-1] >= lowest[0]


def _test_size(sweep: _Sweep) -> Finding:
    """Test that any two rates of a length differ by less than `SMALL_DIFF`."""
    differences = np.abs(sweep.differences)
    holds = bool(differences.max() < SMALL_DIFF)
    if sweep.freedom == 0:
        return _without_scatter(holds)
    margins = (SMALL_DIFF - differences) / sweep.errors
    if holds:
        return _decide(True, float(stats.t.cdf(margins.min(), sweep.freedom)))
    return _decide(False, _confidence(sweep.pivots[1], -margins.min()))


def _groups(sweep: _Sweep, lengths: list[int], rates: list[str]) -> list[EpochGroup]:
    exclusion = sweep.exclusion
    plausible = np.ones_like(exclusion, bool)
    if sweep.freedom:
        limits = (c for c in np.unique(exclusion) if _confidence(sweep.pivots[0], c) >= CONFIDENCE)
        plausible = exclusion < next(limits, np.inf)
    return [
        EpochGroup(
            epochs=int(epochs),
            best_rate=rates[int(means.argmax())],
            plausible=[rate for rate, kept in zip(rates, keep, strict=True) if kept],
            means=dict(zip(rates, means.tolist(), strict=True)),
            seeds=dict(zip(rates, counts.tolist(), strict=True)),
        )
        for epochs, means, counts, keep in zip(
            lengths, sweep.means, sweep.counts, plausible, strict=True
        )
    ]

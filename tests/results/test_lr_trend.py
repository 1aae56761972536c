import json

import numpy as np
import pytest
from fake_runs import make_sweep

from cae_seg.results.claim_page import write_claim
from cae_seg.results.collect import collect_runs
from cae_seg.results.lr_trend import (
    CONFIDENCE,
    CONTRADICTED,
    INCONCLUSIVE,
    SUPPORTED,
    check_claim,
    run_test,
)

RATES = ("1e-4", "2e-4", "4e-4")
FALLING = {300: (47.2, 47.5, 47.9), 800: (49.2, 49.6, 49.3), 1600: (50.3, 50.0, 49.8)}
RISING = dict(zip(FALLING, reversed(FALLING.values()), strict=True))
FLAT = {300: (47.2, 47.9, 47.5), 800: (49.2, 49.8, 49.3), 1600: (50.3, 50.9, 50.0)}


def draw(means, scatter, seeds, generator):
    """Draw the scores of a sweep over RATES; `means` gives the true mIoU of each length."""
    count = seeds if callable(seeds) else lambda *_: seeds
    return {
        (epochs, rate): mean + scatter * generator.standard_normal(count(epochs, rate))
        for epochs, row in means.items()
        for rate, mean in zip(RATES, row, strict=True)
    }


def sweep(tmp_path, means, scatter, seeds=3):
    scores = draw(means, scatter, seeds, np.random.default_rng(5))
    return make_sweep(
        tmp_path / "results", {key: tuple(map(float, s)) for key, s in scores.items()}
    )


def test_of(sheet):
    (one,) = check_claim(collect_runs(sheet))
    return one


test_of.__test__ = False


@pytest.mark.parametrize(
    ("means", "scatter", "expected"),
    [
        (FALLING, 0.05, SUPPORTED),
        (RISING, 0.05, CONTRADICTED),
        (FLAT, 0.05, CONTRADICTED),
        (FALLING, 1.0, INCONCLUSIVE),
        (RISING, 1.0, INCONCLUSIVE),
    ],
)
def test_the_best_rate_is_judged_by_the_scatter_of_seeds(tmp_path, means, scatter, expected):
    assert test_of(sweep(tmp_path, means, scatter)).trend.verdict == expected


def test_pure_scatter_over_many_lengths_is_inconclusive(tmp_path):
    means = dict.fromkeys((100, 200, 300, 400, 800, 1600), (49.0, 49.0, 49.0))
    assert test_of(sweep(tmp_path, means, 0.5)).trend.verdict == INCONCLUSIVE


def test_a_rise_between_two_lengths_contradicts_a_fall_over_all(tmp_path):
    means = {300: (47, 47, 48), 800: (50, 49, 49), 1600: (51, 51.6, 51)}
    assert test_of(sweep(tmp_path, means, 0.02)).trend.verdict == CONTRADICTED


@pytest.mark.parametrize(
    ("gap", "scatter", "expected"),
    [(0.2, 0.05, SUPPORTED), (3.0, 0.05, CONTRADICTED), (1.0, 0.8, INCONCLUSIVE)],
)
def test_the_size_of_the_differences_is_judged(tmp_path, gap, scatter, expected):
    means = {300: (47, 47 + gap / 2, 47 + gap), 1600: (50 + gap, 50 + gap / 2, 50)}
    assert test_of(sweep(tmp_path, means, scatter)).size.verdict == expected


def test_the_confidence_decides_the_verdict():
    generator = np.random.default_rng(2)
    for _ in range(60):
        found = run_test(draw(FALLING, generator.uniform(0.02, 0.6), 3, generator))
        for finding in (found.trend, found.size):
            sure = finding.confidence >= CONFIDENCE
            assert finding.verdict == (
                INCONCLUSIVE if not sure else SUPPORTED if finding.holds else CONTRADICTED
            )


def test_one_seed_per_cell_is_inconclusive_and_has_no_confidence(tmp_path):
    found = test_of(sweep(tmp_path, FALLING, 0.0, seeds=1))
    for finding in (found.trend, found.size):
        assert (finding.verdict, finding.confidence) == (INCONCLUSIVE, None)
        assert "no cell has two seeds" in finding.reason


def test_lengths_without_common_rates_are_inconclusive(tmp_path):
    scores = {(300, "3e-4"): (48.0, 48.1), (800, "2e-4"): (49.7, 49.6), (1600, "1e-4"): (50.3,)}
    found = test_of(make_sweep(tmp_path / "results", scores))
    assert (found.trend.verdict, found.groups) == (INCONCLUSIVE, [])


def test_a_large_difference_on_one_degree_of_freedom_is_named_with_its_confidence():
    found = run_test({(300, "1e-3"): [53.6], (300, "3e-3"): [79.0],
                      (1600, "1e-3"): [45.8, 54.3], (1600, "3e-3"): [79.6]})  # fmt: skip
    assert (found.freedom, found.single_seed_cells) == (1, 3)
    assert found.size.holds is False
    assert 0.5 < found.size.confidence < CONFIDENCE


# Truths on the boundary of a hypothesis, where a wrong verdict is most likely. `E` breaks ties.
E = 1e-9
NOT_FALLING = {
    "same best, second and third about as good": {
        300: (49, 50, 50 - E), 800: (49, 50, 49), 1600: (50 - E, 50, 49)},
    "all rates about the same": dict.fromkeys((300, 800, 1600), (50, 50 + E, 50)),
    "a rise at the end that is about none": {
        300: (49, 49, 50), 800: (50, 49, 49), 1600: (50, 50 + E, 49)},
}  # fmt: skip
BARELY_FALLING = {
    "one length decides": {300: (49, 50, 50 + E), 800: (49, 50, 49), 1600: (49, 50, 49)},
    "all rates about the same": {300: (50, 50, 50 + E), 800: (50, 50 + E, 50),
                                 1600: (50 + E, 50, 50)},
}  # fmt: skip
AT_THE_LIMIT = {300: (49, 49.5, 50 + E), 800: (49, 49, 49), 1600: (50, 50, 50)}
ALL_AT_THE_LIMIT = dict.fromkeys((300, 800, 1600), (49, 50 - E, 50 - E))
SWEEPS = 500


def few_seeds(epochs, rate):
    return 1 if (epochs, rate) in ((300, "1e-4"), (800, "2e-4")) else 4 if epochs == 1600 else 2


def count_verdicts(means, half, verdict, seeds, scatter=0.4):
    generator = np.random.default_rng(11)
    found = (getattr(run_test(draw(means, scatter, seeds, generator)), half) for _ in range(SWEEPS))
    return sum(finding.verdict == verdict for finding in found)


@pytest.mark.parametrize("seeds", [3, few_seeds], ids=["three seeds", "one to four seeds"])
@pytest.mark.parametrize(
    ("means", "half", "wrong"),
    [
        *((means, "trend", SUPPORTED) for means in NOT_FALLING.values()),
        *((means, "trend", CONTRADICTED) for means in BARELY_FALLING.values()),
        (AT_THE_LIMIT, "size", SUPPORTED),
        (ALL_AT_THE_LIMIT, "size", CONTRADICTED),
    ],
)
def test_wrong_verdicts_are_no_more_frequent_than_stated(means, half, wrong, seeds):
    assert count_verdicts(means, half, wrong, seeds) <= (1 - CONFIDENCE) * SWEEPS


@pytest.mark.parametrize(
    ("means", "half", "right"),
    [
        ({300: (47, 48, 49), 800: (48, 49.5, 48), 1600: (51, 50, 49)}, "trend", SUPPORTED),
        ({300: (51, 50, 49), 800: (48, 49.5, 48), 1600: (47, 48, 49)}, "trend", CONTRADICTED),
        ({300: (49, 49, 49), 800: (49.1, 49, 49), 1600: (50, 50, 50)}, "size", SUPPORTED),
        ({300: (46, 48, 49), 800: (49, 49, 49), 1600: (51, 50, 49)}, "size", CONTRADICTED),
    ],
)
def test_clear_truths_are_recognised_in_most_sweeps_of_three_seeds(means, half, right):
    assert count_verdicts(means, half, right, 3, scatter=0.2) > SWEEPS / 2


def test_the_claim_is_written_for_people_and_programs_and_twice_the_same(tmp_path):
    sheet = sweep(tmp_path, FALLING, 0.05)
    out = tmp_path / "claim.md"
    write_claim(sheet, out)
    first = out.read_text()
    assert first.count("**Supported**") == 2
    for words in (
        "the best of 3 learning rates was 4e-4 at 300 epochs and 1e-4 at 1600",
        "27 runs in 9 cells, 3 seeds per cell, standard deviation of seeds 0.0",
        "on 18 degrees of freedom",
        "Hsu 1984",
    ):
        assert words in first
    content = json.loads((tmp_path / "claim.json").read_text())
    assert content["tests"][0]["trend"]["verdict"] == SUPPORTED
    assert content["tests"][0]["summary"] in first
    write_claim(sheet, out)
    assert out.read_text() == first


def test_borrowed_scatter_is_mentioned(tmp_path):
    scores = {(300, "1e-4"): (48.0,), (300, "2e-4"): (48.5,), (1600, "1e-4"): (50.0, 50.3),
              (1600, "2e-4"): (49.0,)}  # fmt: skip
    write_claim(make_sweep(tmp_path / "results", scores), tmp_path / "claim.md")
    assert "3 of 4 cells have one seed" in (tmp_path / "claim.md").read_text()

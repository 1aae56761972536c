import json

import numpy as np
import pytest
from made_up_runs import make_sweep

from cae_seg.results.lr_trend import CONTRADICTED, SUPPORTED, UNCLEAR, check_claim, write_claim
from cae_seg.results.collect import collect_runs

RATES = ("1e-4", "2e-4", "4e-4")


def sweep(tmp_path, means, scatter, seeds=3):
    """Make a sweep over RATES; `means` gives the true mIoU of each pretraining length."""
    draw = np.random.default_rng(5)
    scores = {
        (epochs, rate): tuple(mean + scatter * draw.standard_normal(seeds))
        for epochs, row in means.items()
        for rate, mean in zip(RATES, row, strict=True)
    }
    return make_sweep(tmp_path / "results", scores)


def verdict(sheet):
    (one,) = check_claim(collect_runs(sheet))
    return one


FALLING = {300: (47.2, 47.5, 47.9), 800: (49.2, 49.6, 49.3), 1600: (50.3, 50.0, 49.8)}
RISING = dict(zip(FALLING, reversed(FALLING.values()), strict=True))
FLAT = {300: (47.2, 47.9, 47.5), 800: (49.2, 49.8, 49.3), 1600: (50.3, 50.9, 50.0)}


@pytest.mark.parametrize(
    ("means", "scatter", "expected"),
    [
        (FALLING, 0.05, SUPPORTED),
        (RISING, 0.05, CONTRADICTED),
        (FLAT, 0.05, CONTRADICTED),
        (FALLING, 1.0, UNCLEAR),
        (RISING, 1.0, UNCLEAR),
    ],
)
def test_the_best_rate_is_judged_by_the_scatter_of_seeds(tmp_path, means, scatter, expected):
    found = verdict(sweep(tmp_path, means, scatter))
    assert found.rate_verdict == expected
    assert found.rate_sentence.lower().startswith(expected)


def test_pure_scatter_over_many_lengths_neither_supports_nor_contradicts(tmp_path):
    means = dict.fromkeys((100, 200, 300, 400, 800, 1600), (49.0, 49.0, 49.0))
    assert verdict(sweep(tmp_path, means, 0.5)).rate_verdict == UNCLEAR


def test_a_sure_rise_between_two_lengths_contradicts_a_falling_trend(tmp_path):
    means = {300: (47, 47, 48), 800: (50, 49, 49), 1600: (51, 51.6, 51)}
    found = verdict(sweep(tmp_path, means, 0.02))
    assert found.rate_verdict == CONTRADICTED
    assert "from 800 to 1600 epochs" in found.rate_sentence


@pytest.mark.parametrize(
    ("gap", "scatter", "expected"),
    [(0.2, 0.05, SUPPORTED), (3.0, 0.05, CONTRADICTED), (1.0, 0.8, UNCLEAR)],
)
def test_the_size_of_the_differences_is_judged(tmp_path, gap, scatter, expected):
    means = {300: (47, 47 + gap / 2, 47 + gap), 1600: (50 + gap, 50 + gap / 2, 50)}
    assert verdict(sweep(tmp_path, means, scatter)).size_verdict == expected


def test_one_seed_a_cell_decides_nothing(tmp_path):
    found = verdict(sweep(tmp_path, FALLING, 0.0, seeds=1))
    assert (found.rate_verdict, found.size_verdict) == (UNCLEAR, UNCLEAR)
    assert "scatter is unknown" in found.rate_sentence


def test_lengths_without_common_rates_decide_nothing(tmp_path):
    scores = {(300, "3e-4"): (48.0, 48.1), (800, "2e-4"): (49.7, 49.6), (1600, "1e-4"): (50.3,)}
    found = verdict(make_sweep(tmp_path / "results", scores))
    assert (found.rate_verdict, found.lengths) == (UNCLEAR, [])


def test_the_best_rates_come_with_probabilities(tmp_path):
    lengths = verdict(sweep(tmp_path, FALLING, 0.05)).lengths
    assert [length.best_rate for length in lengths] == ["4e-4", "2e-4", "1e-4"]
    for length in lengths:
        assert sum(length.probabilities.values()) == pytest.approx(1)
        assert length.probabilities[length.best_rate] > 0.9


def test_the_claim_is_written_for_people_and_programs_and_twice_the_same(tmp_path):
    sheet = sweep(tmp_path, FALLING, 0.05)
    out = tmp_path / "claim.md"
    write_claim(sheet, out)
    first = out.read_text()
    assert "**" not in first
    assert "Supported: the best learning rate falls: 4e-4 at 300 epochs" in first
    content = json.loads((tmp_path / "claim.json").read_text())
    assert content["verdicts"][0]["rate_verdict"] == SUPPORTED
    write_claim(sheet, out)
    assert out.read_text() == first

import json

import pytest
from fake_runs import make_run

from cae_seg.errors import UserError
from cae_seg.results.aggregate_seeds import aggregate_seeds


def test_seeds_are_joined(tmp_path):
    scores = (48.0, 48.6, 48.3)
    paths = [
        make_run(tmp_path / f"seed_{seed}", "row", seed, miou=miou) / "metrics.json"
        for seed, miou in enumerate(scores)
    ]
    aggregate_seeds(paths, tmp_path / "metrics.json")
    summary = json.loads((tmp_path / "metrics.json").read_text())
    assert (summary["experiment"], summary["n"]) == ("row", 3)
    assert summary["mIoU"] == pytest.approx(48.3)
    assert summary["mIoU_std"] == pytest.approx(0.3)
    assert [seed["mIoU"] for seed in summary["seeds"]] == list(scores)
    assert all("per_class" not in seed for seed in summary["seeds"])


def test_one_seed_has_no_deviation(tmp_path):
    run = make_run(tmp_path / "seed_0")
    assert aggregate_seeds([run / "metrics.json"], tmp_path / "metrics.json")["mIoU_std"] is None


def test_seeds_of_two_experiments_are_refused(tmp_path):
    paths = [make_run(tmp_path / name, name) / "metrics.json" for name in ("one", "two")]
    with pytest.raises(UserError, match="2 experiments"):
        aggregate_seeds(paths, tmp_path / "metrics.json")


def test_a_missing_seed_is_named(tmp_path):
    with pytest.raises(UserError, match=r"seed_0/metrics\.json: no such file"):
        aggregate_seeds([tmp_path / "seed_0/metrics.json"], tmp_path / "metrics.json")

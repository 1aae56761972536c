"""The benchmark suite: its clockwork, and each model case once at a small size."""

import math
import re

import psutil
import pytest

from benchmarks import __main__ as benchmarks_main
from benchmarks import memory, render, suite, turns
from benchmarks.__main__ import main
from cae_seg.files import atomic_write_json

MACHINE = {
    "processor": "Abacus",
    "cores": 2,
    "threads": 2,
    "memory_gb": 1,
    "python": "3.11",
    "versions": {"torch": "2.11.0", "timm": None},
    "date": "2026-01-01 00:00 UTC",
    "load_before": 0.1,
}


def test_sides_take_turns_and_warm_up_does_not_count(monkeypatch):
    calls, clock = [], [0.0]
    monkeypatch.setattr(turns.time, "perf_counter", lambda: clock[0])

    def work(name: str, seconds: float):
        calls.append(name)
        # The first round is slow, as first rounds are.
        clock[0] += seconds if len(calls) > 2 else 0.2

    found = turns.alternate(
        lambda: work("stock", 0.04), lambda: work("ours", 0.02), rounds=3, warmup=1
    )
    assert calls == ["stock", "ours"] * 4
    assert len(found["stock_all"]) == 3
    assert found["ratio"] == pytest.approx(2)
    assert found["stock"] == pytest.approx(0.04)


@pytest.mark.parametrize(
    ("ours", "rounds"),
    [([1.0] * 8, 3), ([1.0, 1.5, 1.2, 1.2, 1.2, 1.2, 1.2, 1.2], 8), ([1.0, 1.1, *[1.05] * 6], 5)],
    ids=["steady", "unsteady to the last", "steady after a while"],
)
def test_rounds_are_made_until_the_ratio_is_known(ours, rounds):
    times = {"stock": iter([2.0] * 8), "ours": iter(ours)}
    sides = {name: lambda t=values: turns.Seconds(next(t), 0.5) for name, values in times.items()}
    found = turns.in_turns(sides)
    assert len(found["stock"]) == len(found["ours"]) == rounds
    row = turns.against_stock(found)
    assert row["processor_ratio"] == 1
    assert (row["spread"] < 0.1) == (rounds < 8)


def test_spread_is_the_interval_of_students_t():
    """Two rounds, ratios 2 and 2.1: t of one degree of freedom is 12.7062."""
    found = {
        "stock": [turns.Seconds(2.0, 1), turns.Seconds(2.1, 1)],
        "ours": [turns.Seconds(1.0, 1)] * 2,
    }
    value, spread = turns.ratio(found, "stock", "ours")
    half = 12.7062 * math.log(2.1 / 2) / 2
    assert value == pytest.approx(math.sqrt(2 * 2.1))
    assert spread == pytest.approx(math.exp(half) - math.exp(-half), rel=1e-4)


def test_peak_memory_is_what_work_adds():
    torch = pytest.importorskip("torch")
    added = memory.peak_bytes(lambda: torch.ones(64, 2**20).sum(), "cpu")
    assert 240 * 2**20 < added < 300 * 2**20


def test_page_shows_ratio_target_machine_and_versions(tmp_path, monkeypatch):
    row = {
        "what": "a step",
        "stock": 2.0,
        "ours": 1.0,
        "ratio": 2.0,
        "spread": 0.034,
        "target": 1.6,
    }
    extra = {"agreement": "same", "ours_peak_gb": 1.5, "ours_all": [1.0]}
    result = {"case": "training_step", "device": "cpu", "machine": MACHINE, "rows": [row | extra]}
    atomic_write_json(tmp_path / "training_step_cpu.json", result)
    monkeypatch.setattr(render, "RESULTS", tmp_path)
    monkeypatch.setattr(render, "PAGE", tmp_path / "page.md")
    render.write()
    page = (tmp_path / "page.md").read_text()
    assert "| a step | 2 s | 1 s | 2.00 | 3.4% | ≥ 1.6 | same |" in page
    assert "Abacus" in page
    assert "torch 2.11.0" in page
    assert "ours peak gb 1.5" in page
    assert "all" not in page.partition("ours peak gb")[2]


def test_page_tells_what_was_measured_under_load(tmp_path, monkeypatch):
    row = {"what": "a step", "stock": 2.0, "ours": 1.0, "ratio": 2.0, "spread": 0.034}
    monkeypatch.setitem(suite.CASES, "a_step", lambda options: [row | {"busy": _children()}])
    for module in (render, benchmarks_main):
        monkeypatch.setattr(module, "RESULTS", tmp_path)
    monkeypatch.setattr(render, "PAGE", tmp_path / "page.md")
    monkeypatch.setattr(benchmarks_main, "machine", lambda device: MACHINE)
    before = _children()
    assert main(["a_step", "--device", "cpu", "--competing", "2"]) == 0
    assert main(["a_step", "--device", "cpu"]) == 0
    page = (tmp_path / "page.md").read_text()
    idle, busy = page.partition("## A step, timed on cpu\n")[2].split("## A step, ")
    assert f"busy {before}" in idle
    assert busy.startswith("timed on cpu, with 2 competing processes")
    assert f"busy {before + 2}" in busy
    assert _children() == before


def _children() -> int:
    return len(psutil.Process().children())


def test_unknown_case_is_named(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["trainings_step"])
    assert "trainings_step" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("case", ["training_step", "evaluation"])
def test_case_runs_and_agrees(case, capsys):
    assert main([case, "--quick", "--device", "cpu", "--rounds", "1"]) == 0
    printed = capsys.readouterr().out
    assert "ratio" in printed
    if case == "training_step":
        loss, median, most = re.findall(r"\de-\d\d", printed.partition("; ours ")[2])[:3]
        assert max(float(loss), float(median), float(most)) < 1e-4
    if case == "evaluation":
        assert printed.count(" 0 of ") == 2
        assert printed.count("miou_difference 0") == 2


@pytest.mark.slow
def test_start_up_is_measured_from_a_fresh_start_and_from_a_late_checkpoint(capsys):
    assert main(["start_up", "--quick", "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert "first iteration, seconds" in printed
    assert "resuming at iteration 150000, seconds" in printed

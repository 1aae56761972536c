"""A workflow that is interrupted on one machine ends with the results of an uninterrupted one.

The runs wait at a gate (`gate.py`) for whatever happens to them, so no step depends on how fast
the machine is.
"""

import csv
import os
import signal
import subprocess

import pytest
from checkouts import Checkout
from interrupted_runs import (
    INTERVAL,
    ITERATIONS,
    MEASURES,
    Run,
    tracked_runs,
    write_sheet,
)
from waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

INTERRUPTED = ("killed", "orphan")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Checkout:
    """A copy of the repository with the real commands and two sheets of the same run."""
    copy = Checkout(tmp_path_factory.mktemp("local"), stub=False)
    write_sheet(copy.path / "baseline.yaml", {"uninterrupted": {}}, cpus=1)
    write_sheet(copy.path / "interrupted.yaml", {name: {} for name in INTERRUPTED}, cpus=1)
    return copy


def run(checkout: Checkout, sheet: str, name: str) -> Run:
    return Run(checkout.path / "results" / sheet / name / "seed_0")


@pytest.fixture(scope="module")
def baseline(checkout) -> Run:
    arguments = ("--profile", "local", "--cores", "2", "--config", "sheet=baseline.yaml")
    checkout.run(*arguments)
    return run(checkout, "baseline", "uninterrupted")


@pytest.fixture(scope="module")
def interrupted(checkout, baseline, tmp_path_factory) -> dict:
    """Ctrl-C; then `kill -9` of Snakemake, a restart while its runs train on; one run dies."""
    store = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    runs = [run(checkout, "interrupted", name) for name in INTERRUPTED]
    with (checkout.path / "interrupted.log").open("a") as log:

        def start() -> subprocess.Popen:
            return checkout.start(
                *("--profile", "local", "--cores", "2", "--config", "sheet=interrupted.yaml"),
                output=log,
                MLFLOW_TRACKING_URI=f"sqlite:///{store}",
            )

        def start_and_hold(iteration: int) -> subprocess.Popen:
            for one in runs:
                one.hold(iteration)
            process = start()
            wait_until(
                f"both runs are at iteration {iteration}",
                lambda: all(one.held for one in runs),
                during=process,
            )
            return process

        first = start_and_hold(INTERVAL + 3)
        os.killpg(first.pid, signal.SIGINT)
        first.wait(900)
        # Snakemake may end before its jobs do.
        wait_until("its runs have ended", lambda: not any(one.processes() for one in runs))
        second = start_and_hold(3 * INTERVAL + 3)
        second.kill()
        second.wait()
        orphans = [one.processes() for one in runs]
        checkout.run("--unlock")
        third = start()
        wait_until(
            "the new processes wait for the old ones",
            lambda: all("waiting for" in one.log() for one in runs),
            during=third,
        )
        for process in orphans[0]:
            process.kill()
        for one in runs:
            one.release()
        exit_status = third.wait(1800)
    assert exit_status == 0, (checkout.path / "interrupted.log").read_text()[-3000:]
    return {"store": store, "orphans": orphans}


def test_runs_outlive_a_killed_snakemake(interrupted):
    assert all(interrupted["orphans"])
    left = [one for orphans in interrupted["orphans"] for one in orphans if one.is_running()]
    assert not left


@pytest.mark.parametrize("name", INTERRUPTED)
def test_an_interrupted_run_ends_like_an_uninterrupted_one(checkout, interrupted, baseline, name):
    found = run(checkout, "interrupted", name)
    assert found.events("finish") == [ITERATIONS]
    assert found.weights() == baseline.weights()
    for key in MEASURES:
        assert found.json("metrics.json")[key] == baseline.json("metrics.json")[key]


def test_only_a_kill_repeats_iterations_and_no_second_writer_does(checkout, interrupted):
    assert run(checkout, "interrupted", "orphan").repeated() == 0
    assert run(checkout, "interrupted", "orphan").json("run.json")["attempts"] == 2
    assert run(checkout, "interrupted", "killed").repeated() == 3


def test_the_table_is_the_one_of_uninterrupted_runs(checkout, interrupted, baseline):
    with (checkout.path / "results/interrupted/table.csv").open() as file:
        found = [float(row["mIoU"]) for row in csv.DictReader(file)]
    assert found == [baseline.json("metrics.json")["mIoU"]] * len(INTERRUPTED)


def test_tracking_has_each_run_once_with_each_point_once(interrupted):
    assert tracked_runs(interrupted["store"]) == (len(INTERRUPTED), [])

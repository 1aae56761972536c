"""Whatever happens to a workflow on one machine, its results are those of an undisturbed one."""

import csv
import os
import signal
import subprocess
from collections.abc import Callable

import pytest
from checkouts import Checkout
from disturbed_runs import (
    DEFAULTS,
    INTERVAL,
    MEASURES,
    Run,
    tracked_runs,
    wait_until,
    write_sheet,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

DISTURBED = ("killed", "orphan")
ITERATIONS = 100


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Checkout:
    """A copy of the repository with the real commands and two sheets of the same run."""
    copy = Checkout(tmp_path_factory.mktemp("local"), stub=False)
    options = DEFAULTS["options"] | {"train_cfg.max_iters": ITERATIONS}
    for sheet, rows in (("calm", ["undisturbed"]), ("storm", DISTURBED)):
        path = copy.path / f"{sheet}.yaml"
        write_sheet(path, {row: {} for row in rows}, cpus=1, options=options)
    return copy


def run(checkout: Checkout, sheet: str, name: str) -> Run:
    return Run(checkout.path / "results" / sheet / name / "seed_0")


@pytest.fixture(scope="module")
def undisturbed(checkout) -> Run:
    checkout.run("--profile", "local", "--cores", "2", "--config", "sheet=calm.yaml", timeout=600)
    return run(checkout, "calm", "undisturbed")


@pytest.fixture(scope="module")
def storm(checkout, undisturbed, tmp_path_factory) -> dict:
    """Ctrl-C; then `kill -9` of Snakemake, a new start beside its orphans, one of which dies."""
    store = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    runs = [run(checkout, "storm", name) for name in DISTURBED]
    with (checkout.path / "storm.said").open("a") as said:

        def start() -> subprocess.Popen:
            return checkout.start(
                *("--profile", "local", "--cores", "2", "--config", "sheet=storm.yaml"),
                said=said,
                MLFLOW_TRACKING_URI=f"sqlite:///{store}",
            )

        def reach(what: str, where: Callable[[Run], bool]) -> None:
            wait_until(what, lambda: all(where(one) for one in runs))

        first = start()
        reach("both train", lambda one: one.reached(INTERVAL + 3))
        os.killpg(first.pid, signal.SIGINT)
        first.wait(120)
        second = start()
        reach("both go on", lambda one: one.reached(3 * INTERVAL + 3))
        second.kill()
        second.wait()
        orphans = [one.processes() for one in runs]
        checkout.run("--unlock")
        third = start()
        reach("the new ones wait", lambda one: "waiting for" in one.log())
        for process in orphans[0]:
            process.kill()
        exit_status = third.wait(600)
    assert exit_status == 0, (checkout.path / "storm.said").read_text()[-3000:]
    return {"store": store, "orphans": orphans}


def test_a_killed_snakemake_leaves_its_trainings_at_work(storm):
    assert all(storm["orphans"])
    assert not [one for orphans in storm["orphans"] for one in orphans if one.is_running()]


@pytest.mark.parametrize("name", DISTURBED)
def test_a_disturbed_run_ends_like_an_undisturbed_one(checkout, storm, undisturbed, name):
    disturbed = run(checkout, "storm", name)
    assert disturbed.events("finish") == [ITERATIONS]
    assert disturbed.weights() == undisturbed.weights()
    for key in MEASURES:
        assert disturbed.json("metrics.json")[key] == undisturbed.json("metrics.json")[key]


def test_only_a_kill_repeats_work_and_no_second_writer_does(checkout, storm):
    assert run(checkout, "storm", "orphan").repeated() == 0
    assert run(checkout, "storm", "orphan").json("run.json")["attempts"] == 2
    assert run(checkout, "storm", "killed").repeated() <= INTERVAL


def test_the_table_is_the_one_of_undisturbed_runs(checkout, storm, undisturbed):
    with (checkout.path / "results/storm/table.csv").open() as file:
        found = [float(row["mIoU"]) for row in csv.DictReader(file)]
    assert found == [undisturbed.json("metrics.json")["mIoU"]] * len(DISTURBED)


def test_tracking_knows_each_run_once_with_each_point_once(storm):
    assert tracked_runs(storm["store"]) == (len(DISTURBED), [])

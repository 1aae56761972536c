"""Whatever happens to a run on a cluster, its results are those of an undisturbed one.

All runs here are the same combination under different names, so one undisturbed run is the measure
of them all. Several are disturbed at once, each in its own way, under one Snakemake; what is done
to them waits for them to have got somewhere, not for a time.
"""

import csv
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import pytest
from disturbed_runs import INTERVAL, ITERATIONS, MEASURES, Run, tracked_runs, wait_until
from slurm_site import Site

pytestmark = pytest.mark.timeout(1800)

CALM = {"undisturbed": {}, "two_nodes": {"nodes": 2, "cpus": 1}}
STORM = {
    "limited": {"resources": {"runtime": 3, "constraint": "first"}},
    "cancelled": {"resources": {"constraint": "first"}},
    "requeued": {"resources": {"slurm_partition": "requeue", "constraint": "second"}},
    "preempted": {"resources": {"slurm_partition": "cancel", "constraint": "second"}},
}
WRECK = {
    "orphan": {"resources": {"constraint": "first"}},
    "doomed": {"resources": {"constraint": "first"}},
    "nodeless": {"resources": {"constraint": "second"}},
}
ROWS = {"storm": STORM, "wreck": WRECK}


def finish(process: subprocess.Popen, site: Site, sheet: str, seconds: float = 1500) -> int:
    """Wait for a Snakemake; its last words are the message of a failure."""
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        pytest.fail(f"Snakemake does not end: {site.said(sheet)[-3000:]}")


@dataclass(frozen=True)
class Reference:
    """The undisturbed run, and the times that others may expect."""

    run: Run
    weights: str
    startup: float  # s from the start of the job to its first iteration
    iteration: float  # s


@pytest.fixture(scope="session")
def undisturbed(site: Site) -> Reference:
    sheet = site.sheet("calm", CALM)
    finish(site.snakemake(sheet), site, sheet)
    run = site.run(sheet, "undisturbed")
    assert run.events("finish") == [ITERATIONS], site.said(sheet)[-3000:]
    times = [line["time"] for line in run.lines("train")]
    began = site.ask("sacct", "-X", "-n", "-P", "--format=Start,JobName").splitlines()
    began = next(line.split("|")[0] for line in began if "undisturbed.seed0.fine_tune" in line)
    startup = times[0] - datetime.fromisoformat(began).timestamp()
    return Reference(run, run.weights(), startup, (times[-1] - times[0]) / (len(times) - 1))


def test_ranks_on_two_nodes_train_the_same_run(site, undisturbed):
    steps = site.ask("sacct", "-n", "-P", "--format=JobID,NTasks,NodeList").splitlines()
    assert any(step.endswith("|2|n[1-2]") for step in steps), steps
    assert_undisturbed(site.run("calm.yaml", "two_nodes"), undisturbed)


@dataclass
class Tale:
    """What was done to the runs of a sheet, and how it ended."""

    site: Site
    sheet: str
    exit_status: int | None = None
    done: dict[str, object] = field(default_factory=dict)
    failures: list[BaseException] = field(default_factory=list)

    def run(self, name: str) -> Run:
        """Return a run of the sheet."""
        return self.site.run(self.sheet, name)

    def meanwhile(self, *deeds: Callable[["Tale"], None]) -> list[threading.Thread]:
        """Do all this at once, in the background."""

        def guarded(deed: Callable[["Tale"], None]) -> None:
            try:
                deed(self)
            except BaseException as error:
                self.failures.append(error)

        threads = [threading.Thread(target=guarded, args=(deed,), daemon=True) for deed in deeds]
        for thread in threads:
            thread.start()
        return threads


def cancel(tale: Tale) -> None:
    wait_until("cancelled trains", lambda: tale.run("cancelled").reached(INTERVAL + 3))
    tale.site.ask("scancel", tale.site.job("cancelled"))


def pre_empt(tale: Tale) -> None:
    for name in ("requeued", "preempted"):
        wait_until(f"{name} trains", lambda name=name: tale.run(name).reached(3))
    tale.done["seized"] = tale.site.seize("n2", seconds=5)


def shorten(tale: Tale, times: Reference) -> None:
    """Bring the end of the first attempts near: SLURM's own limits are whole minutes."""
    run = tale.run("limited")
    for attempt in range(2):
        job = wait_until("limited runs", lambda: tale.site.job("limited"))
        runs = tale.site.ask("squeue", "--noheader", "--states=RUNNING").count("\n") + 1
        seconds = max(1.2, runs / len(CALM)) * (times.startup + 12 * times.iteration)
        end = datetime.now() + timedelta(seconds=seconds)
        tale.site.ask("scontrol", "update", f"JobId={job}", f"EndTime={end:%Y-%m-%dT%H:%M:%S}")
        wait_until("limited stops", lambda n=attempt: len(run.events("stop")) > n or run.finished)
        if run.finished:
            return


def restart_controller(tale: Tale) -> None:
    from cluster import Cluster, start, stop

    cluster = Cluster(tale.site.cluster)
    stop(cluster, "slurmctld", signal.SIGKILL)
    time.sleep(8)
    start(cluster, "slurmctld")
    tale.done["controller"] = "restarted"


@pytest.fixture(scope="session")
def storm(site: Site, undisturbed: Reference, tmp_path_factory) -> Tale:
    """Four runs under one Snakemake, each taken off its GPUs in another way."""
    tale = Tale(site, site.sheet("storm", STORM))
    store = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    tale.done["store"] = store
    process = site.snakemake(tale.sheet, MLFLOW_TRACKING_URI=f"sqlite:///{store}")
    tale.meanwhile(cancel, pre_empt, lambda tale: shorten(tale, undisturbed))
    tale.exit_status = finish(process, site, tale.sheet)
    return tale


def assert_undisturbed(run: Run, reference: Reference) -> None:
    """Compare weights and measures bit by bit."""
    assert run.weights() == reference.weights
    for key in MEASURES:
        assert run.json("metrics.json")[key] == reference.run.json("metrics.json")[key]


def test_a_storm_ends_well_without_anybody_at_the_keyboard(storm):
    assert not storm.failures
    assert storm.exit_status == 0, storm.site.said(storm.sheet)[-3000:]


@pytest.mark.parametrize("name", STORM)
def test_a_disturbed_run_ends_like_an_undisturbed_one(storm, undisturbed, name):
    assert storm.run(name).events("finish") == [ITERATIONS]
    assert storm.run(name).json("run.json")["attempts"] > 1
    assert_undisturbed(storm.run(name), undisturbed)


@pytest.mark.parametrize("name", STORM)
def test_a_run_that_was_warned_repeats_nothing(storm, name):
    assert storm.run(name).repeated() == 0


def test_a_time_limit_stops_a_run_by_its_own_clock_and_the_job_comes_back(storm):
    assert storm.run("limited").events("stop")
    attempts = storm.site.attempts("limited.seed0.fine_tune")
    assert attempts == ["REQUEUED"] * (len(attempts) - 1) + ["COMPLETED"]
    assert len(storm.run("limited").json("run.json")["slurm_job_ids"]) == 1


def test_pre_emption_is_no_failure_whether_slurm_requeues_or_cancels(storm):
    for name in ("requeued", "preempted"):
        assert len(storm.run(name).json("run.json")["slurm_job_ids"]) == 1
    assert "PREEMPTED" in storm.site.attempts("requeued.seed0.fine_tune")


def test_a_cancelled_job_is_noticed_and_submitted_again(storm):
    attempts = storm.site.attempts("cancelled.seed0.fine_tune")
    assert attempts == ["CANCELLED", "COMPLETED"]


def test_the_log_of_a_run_tells_all_attempts(storm):
    for name in STORM:
        told = storm.run(name).log()
        assert "stopped in good order" in told
        assert "going on from iteration" in told
        assert "finished; weights in" in told


@pytest.fixture(scope="session")
def wreck(site: Site, tmp_path_factory) -> Tale:
    """Snakemake, the controller, a node and a launcher die; retries run out; then all goes on."""
    tale = Tale(site, site.sheet("wreck", WRECK))
    store = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    tale.done["store"] = store
    tracking = {"MLFLOW_TRACKING_URI": f"sqlite:///{store}"}
    process = site.snakemake(tale.sheet, **tracking)
    for name in WRECK:
        wait_until(f"{name} trains", lambda name=name: tale.run(name).reached(2))
    tale.done["jobs"] = {name: site.job(name) for name in WRECK}
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    restart_controller(tale)
    # The same command again, while the jobs of the dead Snakemake still run.
    site.unlock()
    second = site.snakemake(tale.sheet, "--retries", "0", **tracking)
    waiting = wait_until("doomed waits in the queue", lambda: site.job("doomed", "PENDING"))
    tale.done["writers"] = len(tale.run("doomed").processes())
    lose_node(tale)
    for job in (tale.done["jobs"]["doomed"], waiting):
        wait_until("doomed trains", lambda job=job: site.job("doomed") == job)
        wait_until("doomed can die", lambda: tale.run("doomed").processes())
        time.sleep(1)
        tale.run("doomed").kill()
        wait_until("doomed is dead", lambda job=job: site.job("doomed") != job)
    tale.exit_status = finish(second, site, tale.sheet)
    tale.done["last words"] = site.said(tale.sheet)
    third = site.snakemake(tale.sheet, **tracking)
    tale.done["exit status"] = finish(third, site, tale.sheet)
    return tale


def lose_node(tale: Tale) -> None:
    """Set a node down under its job, and give it back a little later."""
    change = ("scontrol", "update", "NodeName=n2")
    tale.site.ask(*change, "State=DOWN", "Reason=test")
    job = tale.done["jobs"]["nodeless"]
    # Given back before its processes are gone, the node would be drained for a "Duplicate jobid".
    wait_until("nodeless is off its node", lambda: not tale.site.steps(job))
    tale.site.ask(*change, "State=RESUME")


def test_no_second_writer_enters_while_a_killed_snakemakes_job_lives(wreck):
    assert wreck.done["writers"] == 1
    assert "Directory cannot be locked" not in wreck.done["last words"]


def test_exhausted_retries_say_what_failed_how_far_it_got_and_how_to_go_on(wreck):
    assert wreck.exit_status == 1
    last = wreck.done["last words"].splitlines()
    line = next(line for line in last if line.startswith("doomed, seed 0: reached iteration"))
    assert f"of {ITERATIONS}" in line
    assert "console.log" in line
    assert any("run the same command again" in line for line in last)


def test_the_others_finish_when_one_fails(wreck):
    assert wreck.run("orphan").events("finish") == [ITERATIONS]
    last = wreck.done["last words"].splitlines()
    told = [line for line in last if line.startswith("orphan, seed 0")]
    assert not [line for line in told if "points were new to it" not in line]  # tracking's word


def test_the_same_command_then_brings_it_to_its_end(wreck):
    assert wreck.done["exit status"] == 0, wreck.site.said(wreck.sheet)[-3000:]


@pytest.mark.parametrize("name", WRECK)
def test_a_wrecked_run_ends_like_an_undisturbed_one(wreck, undisturbed, name):
    assert_undisturbed(wreck.run(name), undisturbed)


@pytest.mark.parametrize("name", WRECK)
def test_a_killed_run_repeats_at_most_a_checkpoint_interval_a_time(wreck, name):
    attempts = wreck.run(name).json("run.json")["attempts"]
    assert wreck.run(name).repeated() <= INTERVAL * (attempts - 1)


@pytest.mark.parametrize("disturbed", ["storm", "wreck"])
def test_the_table_is_the_one_of_undisturbed_runs(disturbed, undisturbed, request):
    tale = request.getfixturevalue(disturbed)
    with (tale.site.path / f"results/{disturbed}/table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(ROWS[disturbed])
    expected = undisturbed.run.json("metrics.json")["mIoU"]
    assert {float(row["mIoU"]) for row in rows} == {expected}


@pytest.mark.parametrize("disturbed", ["storm", "wreck"])
def test_tracking_knows_each_run_once_with_each_point_once(disturbed, request):
    tale = request.getfixturevalue(disturbed)
    assert tracked_runs(tale.done["store"]) == (len(ROWS[disturbed]), [])

"""A run that is interrupted on a cluster ends with the results of an uninterrupted one.

All runs here are the same combination under different names, so one uninterrupted run is the
reference of them all. Several are interrupted at once, each in its own way, under one Snakemake.
They wait at a gate (`gate.py`) for what happens to them, so no step depends on how fast the
machine is.
"""

import contextlib
import csv
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import psutil
import pytest
from cluster import Cluster, start, stop
from gate import START
from interrupted_runs import INTERVAL, ITERATIONS, MEASURES, Run, tracked_runs
from slurm_site import Site, finish
from waiting import wait_until

pytestmark = [pytest.mark.timeout(3600), pytest.mark.slow, pytest.mark.slurm]

INTERRUPTED = {
    "limited": {"resources": {"constraint": "first"}},
    "cancelled": {"resources": {"constraint": "first"}},
    "requeued": {"resources": {"slurm_partition": "requeue", "constraint": "second"}},
    "preempted": {"resources": {"slurm_partition": "cancel", "constraint": "second"}},
}
FAILED = {
    "orphan": {"resources": {"constraint": "first"}},
    "retries_exhausted": {"resources": {"constraint": "first"}},
    "node_lost": {"resources": {"constraint": "second"}},
}
ROWS = {"interrupted": INTERRUPTED, "failed": FAILED}


def test_ranks_on_two_nodes_train_the_same_run(site, baseline):
    steps = site.ask("sacct", "-n", "-P", "--format=JobID,NTasks,NodeList").splitlines()
    assert any(step.endswith("|2|n[1-2]") for step in steps), steps
    assert_same_results(site.run("baseline.yaml", "two_nodes"), baseline)


@dataclass
class Scenario:
    """What happened to the runs of a sheet, and how it ended."""

    site: Site
    sheet: str
    exit_status: int | None = None
    done: dict[str, object] = field(default_factory=dict)
    errors: list[BaseException] = field(default_factory=list)

    def run(self, name: str) -> Run:
        """Return a run of the sheet."""
        return self.site.run(self.sheet, name)

    def wait_until_held(self, *names: str) -> None:
        """Wait until the runs of these rows are at their gates."""
        for name in names:
            wait_until(f"{name} is at its gate", lambda name=name: self.run(name).held)

    def inject(self, *faults: Callable[["Scenario"], None]) -> None:
        """Start all faults at once, in the background."""

        def guarded(fault: Callable[["Scenario"], None]) -> None:
            try:
                fault(self)
            except BaseException as error:
                self.errors.append(error)

        for fault in faults:
            threading.Thread(target=guarded, args=(fault,), daemon=True).start()


def cancel(scenario: Scenario) -> None:
    scenario.wait_until_held("cancelled")
    scenario.site.ask("scancel", scenario.site.job("cancelled"))


def pre_empt(scenario: Scenario) -> None:
    scenario.wait_until_held("requeued", "preempted")
    scenario.site.seize("n2", seconds=5)


def exhaust_time_limit(scenario: Scenario) -> None:
    """Hold the run twice until its next iteration may take longer than it has.

    A run reads when its job ends at its start, and stops when an iteration that takes 1.5 × 2
    times as long as the slowest so far would be too long. The waiting is part of an iteration.
    """
    run, seconds = scenario.run("limited"), 180
    for following in (START, None):
        scenario.wait_until_held("limited")
        job = f"JobId={scenario.site.job('limited')}"
        scenario.site.ask("scontrol", "update", job, f"EndTime=now+{seconds}")
        run.hold(max(run.events("stop"), default=0) + 1)
        scenario.wait_until_held("limited")
        # SLURM itself, which counts in minutes, shall not interfere.
        scenario.site.ask("scontrol", "update", job, "TimeLimit=60")
        time.sleep(seconds / 4)
        run.release() if following is None else run.hold(following)


def restart_controller(scenario: Scenario) -> None:
    cluster = Cluster(scenario.site.cluster)
    stop(cluster, "slurmctld", signal.SIGKILL)
    time.sleep(8)
    start(cluster, "slurmctld")


@pytest.fixture(scope="session")
def interrupted(site: Site, baseline: Run, tmp_path_factory) -> Scenario:
    """Four runs under one Snakemake, each taken off its GPUs in another way."""
    scenario = Scenario(site, site.sheet("interrupted", INTERRUPTED))
    store = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    scenario.done["store"] = store
    for name in INTERRUPTED:
        scenario.run(name).hold(START if name == "limited" else INTERVAL + 3)
    process = site.snakemake(scenario.sheet, MLFLOW_TRACKING_URI=f"sqlite:///{store}")
    scenario.inject(cancel, pre_empt, exhaust_time_limit)
    scenario.exit_status = finish(process, site, scenario.sheet)
    return scenario


def assert_same_results(run: Run, baseline: Run) -> None:
    """Compare weights and measures bit by bit."""
    assert run.weights() == baseline.weights()
    for key in MEASURES:
        assert run.json("metrics.json")[key] == baseline.json("metrics.json")[key]


def test_interrupted_runs_end_without_user_action(interrupted):
    assert not interrupted.errors
    assert interrupted.exit_status == 0, interrupted.site.output(interrupted.sheet)[-3000:]


@pytest.mark.parametrize("name", INTERRUPTED)
def test_an_interrupted_run_ends_like_an_uninterrupted_one(interrupted, baseline, name):
    assert interrupted.run(name).events("finish") == [ITERATIONS]
    assert interrupted.run(name).json("run.json")["attempts"] > 1
    assert_same_results(interrupted.run(name), baseline)


@pytest.mark.parametrize("name", INTERRUPTED)
def test_a_run_that_was_warned_repeats_nothing(interrupted, name):
    assert interrupted.run(name).repeated() == 0


def test_a_time_limit_stops_a_run_by_its_own_clock_and_the_job_comes_back(interrupted):
    assert interrupted.run("limited").events("stop")
    attempts = interrupted.site.attempts("limited.seed0.fine_tune")
    assert attempts == ["REQUEUED"] * (len(attempts) - 1) + ["COMPLETED"]
    assert len(interrupted.run("limited").json("run.json")["slurm_job_ids"]) == 1


def test_pre_emption_is_no_failure_whether_slurm_requeues_or_cancels(interrupted):
    for name in ("requeued", "preempted"):
        assert len(interrupted.run(name).json("run.json")["slurm_job_ids"]) == 1
    assert "PREEMPTED" in interrupted.site.attempts("requeued.seed0.fine_tune")


def test_a_cancelled_job_is_noticed_and_submitted_again(interrupted):
    attempts = interrupted.site.attempts("cancelled.seed0.fine_tune")
    assert attempts == ["CANCELLED", "COMPLETED"]


def test_the_log_of_a_run_tells_all_attempts(interrupted):
    for name in INTERRUPTED:
        log = interrupted.run(name).log()
        assert "stopped cleanly" in log
        assert "resuming from iteration" in log
        assert "finished; weights in" in log


@pytest.fixture(scope="session")
def failed(site: Site, tmp_path_factory) -> Scenario:
    """Snakemake, the controller, a node and a launcher die; retries run out; then all resume."""
    scenario = Scenario(site, site.sheet("failed", FAILED))
    store = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    scenario.done["store"] = store
    tracking = {"MLFLOW_TRACKING_URI": f"sqlite:///{store}"}
    for name in FAILED:
        scenario.run(name).hold(2)
    process = site.snakemake(scenario.sheet, **tracking)
    scenario.wait_until_held(*FAILED)
    scenario.done["jobs"] = {name: site.job(name) for name in FAILED}
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    restart_controller(scenario)
    # The same command again, while the jobs of the dead Snakemake still run.
    site.unlock()
    second = site.snakemake(scenario.sheet, "--retries", "0", **tracking)
    waiting = {
        name: wait_until(f"{name} is queued again", lambda name=name: site.job(name, "PENDING"))
        for name in FAILED
    }
    scenario.done["writers"] = len(scenario.run("retries_exhausted").processes())
    scenario.run("orphan").release()
    lose_node(scenario)
    for job in (scenario.done["jobs"]["retries_exhausted"], waiting["retries_exhausted"]):
        kill_launcher(scenario, job)
    scenario.run("retries_exhausted").release()
    scenario.exit_status = finish(second, site, scenario.sheet)
    scenario.done["log"] = site.output(scenario.sheet)
    third = site.snakemake(scenario.sheet, **tracking)
    scenario.done["exit status"] = finish(third, site, scenario.sheet)
    return scenario


def kill_launcher(scenario: Scenario, job: str) -> None:
    """Kill the launcher of a run in a job, and wait for the end of the job."""
    name = "retries_exhausted"
    wait_until("the job trains", lambda: scenario.site.job(name) == job and scenario.run(name).held)
    scenario.run(name).kill()
    wait_until("the job has ended", lambda: scenario.site.job(name) != job)


def lose_node(scenario: Scenario) -> None:
    """Set a node down under its job, and give it back a little later."""
    change = ("scontrol", "update", "NodeName=n2")
    scenario.site.ask(*change, "State=DOWN", "Reason=test")
    job = scenario.done["jobs"]["node_lost"]
    # Given back before its processes are gone, the node would be drained for a "Duplicate jobid".
    wait_until("the job has left its node", lambda: not scenario.site.steps(job))
    scenario.run("node_lost").release()
    scenario.site.ask(*change, "State=RESUME")


def test_no_second_writer_enters_while_a_killed_snakemakes_job_lives(failed):
    assert failed.done["writers"] == 1
    for name, job in failed.done["jobs"].items():
        words = f"{name}.seed0.fine_tune: SLURM job {job} of an earlier start still runs"
        assert failed.done["log"].count(words) == 1
    assert "Directory cannot be locked" not in failed.done["log"]


def test_exhausted_retries_report_what_failed_how_far_it_got_and_how_to_resume(failed):
    assert failed.exit_status == 1
    lines = failed.done["log"].splitlines()
    place = next(
        place
        for place, line in enumerate(lines)
        if line.startswith("retries_exhausted seed 0 failed: ")
    )
    assert "logs/fine_tune/retries_exhausted_seed0.log (iteration " in lines[place + 1]
    assert f"of {ITERATIONS})" in lines[place + 1]
    assert any(line.startswith("Run `snakemake --profile slurm") for line in lines[place:])


def test_the_others_finish_when_one_fails(failed):
    assert failed.run("orphan").events("finish") == [ITERATIONS]
    assert "orphan seed 0 failed" not in failed.done["log"]


def test_the_same_command_then_brings_it_to_its_end(failed):
    assert failed.done["exit status"] == 0, failed.site.output(failed.sheet)[-3000:]


@pytest.mark.parametrize("name", FAILED)
def test_a_failed_run_ends_like_an_uninterrupted_one(failed, baseline, name):
    assert_same_results(failed.run(name), baseline)


@pytest.mark.parametrize("name", FAILED)
def test_a_killed_run_repeats_at_most_a_checkpoint_interval_a_time(failed, name):
    attempts = failed.run(name).json("run.json")["attempts"]
    assert failed.run(name).repeated() <= INTERVAL * (attempts - 1)


@dataclass
class CutOff:
    """A run at its gate on a node that SLURM lost; its next attempt gave way to it."""

    run: Run
    workflow: subprocess.Popen
    on_node: psutil.Process  # the Snakemake that runs the job


@contextlib.contextmanager
def cut_off(site: Site, name: str) -> Iterator[CutOff]:
    """Stop the daemon of a run's node, so that SLURM starts the job elsewhere and kills nothing."""
    sheet = site.sheet(name, {name: {}})
    run = site.run(sheet, name)
    run.hold(INTERVAL + 3)
    process = site.snakemake(sheet, "--retries", "0")
    wait_until("the run is at its gate", lambda: run.held, during=process)
    on_node = run.processes()[0].parent()
    job = site.job(name)
    node = site.ask("squeue", "--noheader", "--format=%N", f"--jobs={job}")
    change = ("scontrol", "update", f"NodeName={node}")
    daemon = Cluster(site.cluster).pid(f"slurmd-{node}")
    os.kill(daemon, signal.SIGSTOP)
    try:
        site.ask(*change, "State=DOWN", "Reason=test")
        returns = "the SLURM job returns to the queue"
        wait_until("the next attempt gives way", lambda: returns in run.log(), during=process)
        assert run.held  # by the process on the lost node
        yield CutOff(run, process, on_node)
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            on_node.resume()  # in case that a test suspended it and failed
        os.kill(daemon, signal.SIGCONT)
        site.ask(*change, "State=RESUME")


def test_a_node_that_stops_answering_while_its_processes_live_costs_no_retry(site, baseline):
    with cut_off(site, "cut_off") as lost:
        lost.run.release()
        assert finish(lost.workflow, site, "cut_off.yaml") == 0
    assert lost.run.repeated() == 0
    assert lost.run.json("run.json")["attempts"] == 1
    assert_same_results(lost.run, baseline)


def test_a_job_that_fails_late_on_a_lost_node_removes_no_results(site, baseline):
    with cut_off(site, "late") as lost:
        lost.on_node.suspend()  # it sees the end of its run when the next attempt is over
        for process in lost.on_node.children(recursive=True):
            process.kill()
        lost.run.release()
        assert finish(lost.workflow, site, "late.yaml") == 0
        lost.on_node.resume()
        wait_until("the job on the lost node ends", lambda: not lost.on_node.is_running())
    assert lost.run.json("run.json")["attempts"] == 2
    assert lost.run.repeated() <= INTERVAL
    assert_same_results(lost.run, baseline)


@pytest.mark.parametrize("sheet", ROWS)
def test_the_table_is_the_one_of_uninterrupted_runs(sheet, baseline, request):
    scenario = request.getfixturevalue(sheet)
    with (scenario.site.path / f"results/{sheet}/table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(ROWS[sheet])
    expected = baseline.json("metrics.json")["mIoU"]
    assert {float(row["mIoU"]) for row in rows} == {expected}


@pytest.mark.parametrize("sheet", ROWS)
def test_tracking_has_each_run_once_with_each_point_once(sheet, request):
    scenario = request.getfixturevalue(sheet)
    assert tracked_runs(scenario.done["store"]) == (len(ROWS[sheet]), [])

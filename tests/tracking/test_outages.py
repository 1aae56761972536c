"""The tracker may be down, slow to come, locked or read-only: runs go on and nothing is lost."""

import json
import logging
import multiprocessing
import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading

import psutil
import pytest
import tracked
from fake_runs import (
    event_line,
    finish_run,
    make_run,
    record_lines,
    start_run,
    system_line,
    write_lines,
)
from tracked import active_runs, answer, assert_whole, only_run
from waiting import WAIT_SECONDS, wait_until

from cae_seg.tracking import follow, following, track
from cae_seg.tracking.store import StoreUnavailable
from cae_seg.tracking.sync import RunSync


@pytest.fixture
def begun(tmp_path):
    """A run that has just begun and logged nothing but that."""
    run = start_run(tmp_path / "results" / "row" / "seed_0")
    write_lines(run / "work" / "metrics.jsonl", record_lines(200)[:1])
    return run


def log_between(run, first, last):
    """Let the run log the lines of the iterations after `first` up to `last`."""
    lines = [line for line in record_lines(200)[1:] if first < line["iteration"] <= last]
    write_lines(run / "work" / "metrics.jsonl", lines)


class Follower:
    """`follow` in a thread."""

    def __init__(self, run, uri):
        self._stop = threading.Event()
        self.result = None

        def work():
            self.result = follow(run, uri=uri, poll=0.1, stop=self._stop)

        self._thread = threading.Thread(target=work, daemon=True)
        self._thread.start()

    def end(self):
        self._stop.set()
        self._thread.join(WAIT_SECONDS)
        assert not self._thread.is_alive()
        return self.result


def steps(uri, key="train/loss"):
    runs = active_runs(uri)
    return [step for step, _, _ in tracked.curve(uri, runs[0], key)] if runs else []


@pytest.fixture(autouse=True)
def _quick_retries_until_delivered(monkeypatch):
    monkeypatch.setattr("cae_seg.tracking.live.LONGEST_PAUSE", 0.5)
    monkeypatch.setattr("cae_seg.tracking.live.FINAL_FLUSH_SECONDS", WAIT_SECONDS)


def test_a_run_is_streamed_while_it_trains(begun, server):
    uri = server.uri
    follower = Follower(begun / "work", uri)
    log_between(begun, 0, 50)
    wait_until("the first score has arrived", lambda: steps(uri, "mIoU") == [50])
    assert only_run(uri).info.status == "RUNNING"
    write_lines(begun / "work" / "metrics.jsonl", [system_line(1), system_line(50)])
    wait_until(
        "system metrics have arrived",
        lambda: steps(uri, "system/cpu_utilization_percentage") == [1, 50],
    )
    log_between(begun, 50, 100)
    wait_until("both scores have arrived", lambda: steps(uri, "mIoU") == [50, 100])
    log_between(begun, 100, 200)
    finish_run(begun, lines=False)
    assert follower.end()["delivered"]
    assert_whole(uri, only_run(uri))
    assert only_run(uri).info.status == "FINISHED"
    assert track(begun, uri=uri)["delivered"]
    assert_whole(uri, only_run(uri))


def test_a_server_that_dies_in_the_middle_misses_nothing(begun, mortal_server, caplog):
    mortal_server.start()
    uri = mortal_server.uri
    with caplog.at_level(logging.WARNING, "cae_seg"):
        follower = Follower(begun, uri)
        log_between(begun, 0, 60)
        wait_until("6 points", lambda: len(steps(uri)) == 6)
        mortal_server.kill()
        log_between(begun, 60, 130)
        wait_until("the outage is noticed", lambda: "is unreachable" in caplog.text)
        mortal_server.start()
        wait_until("13 points", lambda: len(steps(uri)) == 13)
        mortal_server.kill()
        log_between(begun, 130, 150)
        mortal_server.start()
        wait_until("15 points", lambda: len(steps(uri)) == 15)
    assert caplog.text.count("is unreachable") == 1
    assert follower.end()["delivered"]
    log_between(begun, 150, 200)
    finish_run(begun, lines=False)
    track(begun, uri=uri)
    assert_whole(uri, only_run(uri))


def test_a_server_that_comes_late_gets_everything(begun, mortal_server, caplog):
    with caplog.at_level(logging.WARNING, "cae_seg"):
        follower = Follower(begun, mortal_server.uri)
        log_between(begun, 0, 100)
        wait_until("the outage is noticed", lambda: "is unreachable" in caplog.text)
    mortal_server.start()
    wait_until("10 points", lambda: len(steps(mortal_server.uri)) == 10)
    follower.end()


def test_a_server_that_is_down_for_good_costs_a_warning(begun, mortal_server, caplog, monkeypatch):
    monkeypatch.setattr("cae_seg.tracking.live.FINAL_FLUSH_SECONDS", 0.5)
    follower = Follower(begun, mortal_server.uri)
    log_between(begun, 0, 200)
    assert follower.end() == {"delivered": False, "points_sent": 0}
    finish_run(begun, lines=False)
    result = track(begun, uri=mortal_server.uri, patience=1)
    assert result == answer(begun)
    assert result["delivered"] is False
    (line,) = [r.getMessage() for r in caplog.records if "NOT DELIVERED" in r.getMessage()]
    assert f"cae-seg track {begun}" in line
    mortal_server.start()
    assert track(begun.parent.parent, uri=mortal_server.uri)["runs"][0]["delivered"]
    assert answer(begun)["delivered"]
    assert_whole(mortal_server.uri, only_run(mortal_server.uri))


def test_a_server_killed_during_delivery_gets_the_rest_later(tmp_path, mortal_server, monkeypatch):
    from mlflow import MlflowClient

    monkeypatch.setattr("cae_seg.tracking.sync.BATCH", 5)
    mortal_server.start()
    run = make_run(tmp_path / "results" / "row" / "seed_0")
    log_batch = MlflowClient.log_batch

    def log_and_kill(client, run_id, **values):
        log_batch(client, run_id, **values)
        if values.get("metrics"):
            mortal_server.kill()

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_batch", log_and_kill)
        assert not track(run, uri=mortal_server.uri, patience=0)["delivered"]
    mortal_server.start()
    (found,) = active_runs(mortal_server.uri)
    assert sum(len(tracked.curve(mortal_server.uri, found, key)) for key in found.data.metrics) == 5
    track(run, uri=mortal_server.uri)
    assert_whole(mortal_server.uri, only_run(mortal_server.uri))


def test_a_stopped_run_waits_in_mlflow_and_resumes(begun, server):
    uri = server.uri
    follower = Follower(begun, uri)
    log_between(begun, 0, 100)
    write_lines(begun / "work" / "metrics.jsonl", [event_line("stop", 100, late=1)])
    follower.end()
    assert only_run(uri).info.status == "SCHEDULED"
    follower = Follower(begun, uri)
    log_between(begun, 100, 150)
    wait_until("15 points", lambda: len(steps(uri)) == 15)
    assert only_run(uri).info.status == "RUNNING"
    follower.end()


def test_the_follower_is_a_process_that_ends_with_the_training(begun, server, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    with following(begun / "work"):
        log_between(begun, 0, 200)
        wait_until("20 points", lambda: len(steps(server.uri)) == 20)
    assert_whole(server.uri, only_run(server.uri))


def test_nothing_follows_without_a_server(begun, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", None)
    with following(begun):
        pass


def test_the_follower_ends_when_the_training_is_killed(begun, monkeypatch):
    script = (
        "import pathlib, sys, time\n"
        "from cae_seg.tracking import following\n"
        "with following(pathlib.Path(sys.argv[1])):\n"
        "    print('follows', flush=True)\n"
        "    time.sleep(600)\n"
    )
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    training = subprocess.Popen(
        [sys.executable, "-c", script, str(begun)], stdout=subprocess.PIPE, text=True
    )
    assert training.stdout.readline() == "follows\n"
    (child,) = psutil.Process(training.pid).children()
    training.kill()
    training.wait()
    wait_until(
        "the follower has ended", lambda: not child.is_running() or child.status() == "zombie"
    )


def test_a_locked_database_is_waited_for(tmp_path, store, monkeypatch, caplog):
    run = make_run(tmp_path / "results" / "row" / "seed_0")
    holder = sqlite3.connect(tmp_path / "results" / "mlflow.db")
    holder.execute("BEGIN EXCLUSIVE")
    deliver, failures = RunSync.sync_all, []

    def unlock_after_failure(delivery):
        try:
            return deliver(delivery)
        except StoreUnavailable as error:
            failures.append(str(error))
            holder.rollback()
            raise

    monkeypatch.setattr(RunSync, "sync_all", unlock_after_failure)
    assert track(run, uri=store)["delivered"]
    assert len(failures) == 1
    assert "locked" in failures[0]
    assert re.search(r"locked.*; trying again for \d+ s at most", caplog.text)
    assert_whole(store, only_run(store))


def test_a_database_locked_for_good_costs_a_warning(tmp_path, store, caplog):
    run = make_run(tmp_path / "results" / "row" / "seed_0")
    with sqlite3.connect(tmp_path / "results" / "mlflow.db") as holder:
        holder.execute("BEGIN EXCLUSIVE")
        result = track(run, uri=store, patience=0)
        holder.rollback()
    assert result["delivered"] is False
    assert "locked" in result["error"]
    assert caplog.text.count("NOT DELIVERED") == 1
    track(run, uri=store)
    assert_whole(store, only_run(store))


def test_a_read_only_database_costs_a_warning_at_once(tmp_path, store):
    run = make_run(tmp_path / "results" / "row" / "seed_0")
    database = tmp_path / "results" / "mlflow.db"
    database.chmod(0o444)
    assert track_unprivileged(run, store).count("delivery tried") == 1
    assert answer(run)["delivered"] is False
    assert "readonly" in answer(run)["error"]
    database.chmod(0o644)
    assert track(run, uri=store)["delivered"]
    assert_whole(store, only_run(store))


def test_a_folder_that_cannot_be_written_costs_a_warning(tmp_path):
    run = make_run(tmp_path / "results" / "row" / "seed_0")
    sealed = tmp_path / "sealed"
    sealed.mkdir(mode=0o555)
    track_unprivileged(run, f"sqlite:///{sealed}/store/mlflow.db")
    assert answer(run)["delivered"] is False
    assert "cannot be written" in answer(run)["error"]


TRACK = """
import sys
from cae_seg.cli import main
from cae_seg.tracking.sync import RunSync

deliver = RunSync.sync_all

def note_and_deliver(delivery):
    print("delivery tried", file=sys.stderr)
    return deliver(delivery)

RunSync.sync_all = note_and_deliver
sys.exit(main())
"""


def track_unprivileged(run, uri):
    """Track in a process that file modes bind, which root's own do not; return what it printed."""
    drop = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
    command = [*drop, sys.executable, "-c", TRACK, "track", str(run)]
    environment = os.environ | {"MLFLOW_TRACKING_URI": uri}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("NOT DELIVERED") == 1
    assert "Traceback" not in done.stderr
    return done.stderr


def _track_in_child(run, uri, start):
    start.wait()
    sys.exit(0 if track(run, uri=uri)["delivered"] else 1)


def track_together(runs, uri):
    """Track all runs at the same moment, each in a process of its own.

    They are forks of a small process that has loaded MLflow, not of this one, whose memory may be
    gigabytes after other tests.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mlflow"])
    start = context.Event()
    children = [context.Process(target=_track_in_child, args=(run, uri, start)) for run in runs]
    for child in children:
        child.start()
    start.set()
    for child in children:
        child.join(WAIT_SECONDS)
    assert [child.exitcode for child in children] == [0] * len(children)


def check_together(tmp_path, store, number):
    runs = [
        make_run(tmp_path / "results" / "row" / f"seed_{seed}", "row", seed, miou=40 + seed / 10)
        for seed in range(number)
    ]
    track_together(runs, store)
    assert len(active_runs(store)) == number
    for seed in range(number):
        assert_whole(store, only_run(store, seed=seed), miou=40 + seed / 10)


def test_jobs_that_end_together_on_a_store_not_made_yet_lose_nothing(tmp_path, no_store):
    check_together(tmp_path, no_store, 8)


@pytest.mark.slow
def test_forty_jobs_that_end_together_lose_nothing(tmp_path, store):
    check_together(tmp_path, store, 40)


def test_one_run_tracked_by_many_processes_at_once_is_one_run(tmp_path, store):
    run = make_run(tmp_path / "results" / "row" / "seed_0")
    track_together([run] * 5, store)
    assert_whole(store, only_run(store))


def test_training_continues_when_the_stream_is_killed(begun, server, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    spawned = []
    spawn = subprocess.Popen

    def remember(*arguments, **named):
        spawned.append(spawn(*arguments, **named))
        return spawned[-1]

    monkeypatch.setattr(subprocess, "Popen", remember)
    with following(begun / "work"):
        log_between(begun, 0, 100)
        os.kill(spawned[0].pid, signal.SIGKILL)
    log_between(begun, 100, 200)
    finish_run(begun, lines=False)
    assert track(begun, uri=server.uri)["delivered"]
    assert_whole(server.uri, only_run(server.uri))
    assert json.loads((begun / "tracked.json").read_text())["uri"] == server.uri

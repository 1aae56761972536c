"""A work dir whose small files are lost, torn or unwritable keeps what is whole."""

import logging
import os
import random
import time

import filelock
import pytest
import torch

from cae_seg.errors import UserError
from cae_seg.files import sha256_file
from cae_seg.launch.retry import final_errors
from cae_seg.run.checkpoints import Checkpoints
from cae_seg.run.deadline import StopSignal
from cae_seg.run.logs import configure_logging
from cae_seg.run.metrics_log import MetricsLogger
from cae_seg.run.paths import read_history
from cae_seg.run.work_dir import SCHEMA, Busy, WorkDir
from cae_seg.scratch import scratch_folder

MINE, OTHER = "a" * 64, "b" * 64


@pytest.fixture
def work(tmp_path) -> WorkDir:
    """The work dir of a run of identity MINE, stopped at iteration 20."""
    work = WorkDir(tmp_path / "work")
    work.enter(MINE, 0)
    work.write_metadata({"schema": SCHEMA, "identity": MINE, "attempts": 1})
    metrics = MetricsLogger(work.metrics_log)
    metrics.event("start", iteration=0)
    metrics.write("eval", iteration=10, mIoU=1.0)
    checkpoints = Checkpoints(work.checkpoints, metrics)
    for iteration in (10, 20):
        checkpoints.save(iteration, {"meta": {"iteration": iteration, "identity": MINE}})
    work.leave()
    return work


@pytest.mark.parametrize("torn", ["", '{"identity": "aa', "null", "[1]", "\0\0\0", None])
def test_lost_or_torn_facts_leave_checkpoints_and_record_in_place(work, torn):
    metadata = work.path / "run_metadata.json"
    metadata.unlink()
    if torn is not None:
        metadata.write_text(torn)
    entered = WorkDir(work.path)
    entered.enter(MINE, 0)
    assert entered.metadata() is None
    assert len(list(work.checkpoints.glob("iter_*.pth"))) == 2
    assert read_history(work.metrics_log).evaluations
    assert not list(work.path.parent.glob("work.stale*"))
    entered.leave()


def test_checkpoints_of_another_run_without_facts_are_moved_aside(work):
    (work.path / "run_metadata.json").unlink()
    entered = WorkDir(work.path)
    entered.enter(OTHER, 0)
    assert not work.checkpoints.exists()
    assert len(list(work.path.parent.glob("work.stale-*/checkpoints/iter_*.pth"))) == 2
    entered.leave()


def test_a_record_of_any_damage_is_read_without_an_error(work):
    whole = work.metrics_log.read_bytes()
    chance = random.Random(0)
    for _ in range(500):
        damaged = bytearray(whole)
        for _ in range(3):
            damaged[chance.randrange(len(whole))] = chance.randrange(256)
        work.metrics_log.write_bytes(damaged[: chance.randrange(len(whole))])
        record = read_history(work.metrics_log)
        assert all(isinstance(iteration, int) for iteration in record.evaluations)
        assert all(isinstance(event["event"], str) for event in record.events)


def test_weights_that_changed_since_the_end_are_noticed(work, caplog):
    torch.save({"state_dict": {}}, work.weights)
    work.write_summary({"identity": MINE, "weights": {"sha256": sha256_file(work.weights)}})
    assert work.summary(MINE) is not None
    data = bytearray(work.weights.read_bytes())
    data[len(data) // 2] ^= 1
    work.weights.write_bytes(data)
    with caplog.at_level(logging.WARNING):
        assert work.summary(MINE) is None
    assert "damaged since it was written" in caplog.text


def test_half_written_files_of_killed_writers_are_removed(work):
    left = [
        work.path / f".{name}.x1y2z3" for name in ("run_metadata.json", "weights.pth", "config.py")
    ]
    for file in left:
        file.touch()
    entered = WorkDir(work.path)
    entered.enter(MINE, 0)
    assert not [file for file in left if file.exists()]
    entered.leave()


def test_what_cannot_be_written_is_a_warning_and_is_left_out(tmp_path, capfd):
    """A folder stands where each file should be, which no privilege overcomes."""
    work = WorkDir(tmp_path / "work")
    for name in ("metrics.jsonl", "run_metadata.json", "train.log"):
        (tmp_path / "work" / name).mkdir(parents=True)
    with configure_logging(speak=True) as log:
        log.open(work.log)
        metrics = MetricsLogger(work.metrics_log)
        metrics.event("start", iteration=0)
        metrics.write("train", iteration=1, loss=1.0)
        work.write_metadata({"identity": MINE})
        logging.getLogger("some.library").warning("a line for the log")
    assert work.metadata() == {"identity": MINE}
    output = capfd.readouterr().err
    for name in ("metrics.jsonl", "run_metadata.json", "train.log"):
        lines = [
            line for line in output.splitlines() if name in line and "cannot be written" in line
        ]
        assert len(lines) == 1, output
    assert "Traceback" not in output


def test_scratch_folders_of_killed_launchers_are_removed(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    dead, living, young = (tmp_path / f"cae-seg-{os.getuid()}-{name}" for name in "abc")
    for folder in (dead, living, young):
        folder.mkdir()
        (folder / "0.json").touch()
    hour = time.time() - 3600
    with filelock.FileLock(living / "in_use"):
        for folder in (dead, living):
            os.utime(folder, (hour, hour))
        with scratch_folder() as own:
            assert own.is_dir()
            assert [dead.exists(), living.exists(), young.exists()] == [False, True, True]
    assert not own.exists()


def test_a_users_mistake_fails_retries_at_once_until_the_next_start(tmp_path):
    file, tried = tmp_path / "error.txt", []

    def attempt(number: int, mistake: Exception | None) -> None:
        with final_errors(file, number):
            tried.append(number)
            if mistake:
                raise mistake

    with pytest.raises(UserError, match="wrong key"):
        attempt(1, UserError("config: wrong key"))
    with pytest.raises(UserError, match="wrong key"):
        attempt(2, None)
    attempt(1, None)
    assert tried == [1, 1]
    assert not file.exists()
    for passing in (Busy("work: another is writing"), RuntimeError("crash")):
        with pytest.raises(type(passing)):
            attempt(1, passing)
        attempt(2, None)


def test_a_signal_that_arrives_several_times_is_one_request(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("cae_seg.run.deadline.time.monotonic", lambda: now[0])
    launcher, rank = StopSignal(), StopSignal(patient=True)
    for stop in (launcher, rank):
        for number in (2, 2, 15, 10):  # SIGINT twice, SIGTERM, SIGUSR1
            stop.receive(number)
        assert stop.name == "SIGINT"
    now[0] += 2
    rank.receive(2)
    with pytest.raises(KeyboardInterrupt):
        launcher.receive(2)

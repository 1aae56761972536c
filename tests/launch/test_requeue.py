"""A SLURM job whose work dir is still written by a process that SLURM gave up."""

import os
import subprocess
import sys

import pytest

from cae_seg.engine.job import STOPPED, TrainJob
from cae_seg.launch.launcher import launch_train
from cae_seg.launch.slurm import REQUEUE
from cae_seg.run.work_dir import Busy

HOLD = """
import sys
from pathlib import Path
from cae_seg.locks import FileLock
print(FileLock(Path(sys.argv[1])).acquire(), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def job(tmp_path) -> TrainJob:
    """A job whose work dir another process writes to."""
    work = tmp_path / "work"
    work.mkdir()
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(work / "writer.lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout.readline() == "True\n"
    yield TrainJob(config=tmp_path / "config.py", work_dir=work, lock_wait=0.3)
    holder.communicate()


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A job of SLURM's, whose commands note how they are called."""
    for name, answer in (("squeue", "RUNNING"), ("scontrol", "")):
        script = tmp_path / name
        script.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/{name}.calls\necho {answer}\n')
        script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    return tmp_path


def test_the_job_returns_to_the_queue_without_a_failure(job, slurm, monkeypatch, caplog):
    monkeypatch.setenv(REQUEUE, "1")
    assert launch_train(job) == STOPPED
    assert (slurm / "scontrol.calls").read_text() == "requeue 17\n"
    assert "is writing here" in caplog.text


def test_a_job_that_another_tool_submitted_fails_instead(job, slurm, monkeypatch):
    monkeypatch.delenv(REQUEUE, raising=False)
    with pytest.raises(Busy, match="is writing here"):
        launch_train(job)
    assert not (slurm / "scontrol.calls").exists()

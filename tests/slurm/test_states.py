"""The executor's judgement of states that a test cluster does not produce at will.

SLURM's commands are scripts that answer as given; everything of the executor is real.
"""

import asyncio
import os
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from snakemake_interface_executor_plugins.executors.base import SubmittedJobInfo
from throttler import Throttler

from snakemake_executor_plugin_cae_slurm import Executor
from snakemake_executor_plugin_cae_slurm import executor as module

INVALID = "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1"
SILENT = "echo 'Unable to contact slurm controller (connect failure)' >&2; exit 1"
UNACCOUNTED = "echo 'Slurm accounting storage is disabled' >&2; exit 1"


class Job(SimpleNamespace):
    """A job, as far as the executor looks at it."""

    __hash__ = object.__hash__


class Watch:
    """An executor that watches job 17, and what it reports."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.messages, self.ends = folder, [], []
        self.executor = executor = Executor.__new__(Executor)
        settings = SimpleNamespace(
            init_seconds_before_status_checks=3, keep_successful_logs=True, jobname_prefix=""
        )
        executor.workflow = SimpleNamespace(executor_settings=settings)
        executor.logger = SimpleNamespace(warning=self.messages.append, info=self.messages.append)
        executor._next_seconds_between_status_checks = 3
        executor.status_rate_limiter = Throttler(rate_limit=1000, period=1)
        executor._closing, executor._accounting_asked = threading.Event(), False
        executor._hopeless, executor._reported, executor._missing = {}, {}, {}
        executor.report_job_success = lambda info: self.ends.append("success")
        executor.report_job_error = lambda info, msg, **_: self.ends.append(msg)
        self.job = Job(
            name="fine_tune",
            wildcards={"experiment": "vit", "seed": "0"},
            resources={},
            output=[str(folder / "run.json")],
            is_group=lambda: False,
        )
        self.commands(sacct="exit 0", scontrol="exit 0")

    def commands(self, **scripts: str) -> None:
        """Let SLURM's commands do what lines of shell say, and note how they are called."""
        for name, script in scripts.items():
            file = self.folder / name
            file.write_text(f'#!/bin/sh\necho "$@" >> {self.folder}/{name}.calls\n{script}\n')
            file.chmod(0o755)

    def calls(self, command: str) -> str:
        file = self.folder / f"{command}.calls"
        return file.read_text() if file.exists() else ""

    def check(self, number: str = "17", cluster: str | None = None) -> str:
        """Ask once; return "watched", "success" or the error."""
        aux = {"slurm_logfile": self.folder / "job.log", "cluster": cluster, "name": "vit.seed0"}
        info = SubmittedJobInfo(self.job, number, aux)

        async def watched() -> list:
            return [left async for left in self.executor.check_active_jobs([info])]

        left = asyncio.run(watched())
        assert len(left) + len(self.ends) == 1
        return "watched" if left else self.ends.pop()


@pytest.fixture
def watch(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return Watch(tmp_path)


def in_queue(state: str, reason: str = "None", number: str = "17") -> str:
    return f"echo '{number}|{state}|{reason}'"


@pytest.mark.parametrize("state", ["PENDING", "RUNNING", "COMPLETING", "SUSPENDED", "REQUEUED"])
def test_a_living_job_is_watched(watch, state):
    watch.commands(squeue=in_queue(state))
    assert watch.check() == "watched"


@pytest.mark.parametrize("state", ["FAILED", "TIMEOUT", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE"])
def test_a_failed_job_is_an_error_that_names_the_state(watch, state):
    watch.commands(squeue=in_queue(state))
    assert f"job 17 ended as {state}" in watch.check()


def test_a_cancellation_in_the_accounts_is_an_error_whoever_did_it(watch):
    watch.commands(squeue=INVALID, sacct="echo '17|CANCELLED by 1000'")
    assert "ended as CANCELLED" in watch.check()


@pytest.mark.parametrize("state", ["PREEMPTED", "NODE_FAIL"])
def test_a_job_that_slurm_took_away_returns_to_the_queue(watch, state):
    watch.commands(squeue=in_queue(state))
    assert watch.check() == "watched"
    assert watch.calls("scontrol") == "requeue 17\n"
    watch.commands(scontrol="echo 'Requested operation is presently disabled' >&2; exit 1")
    assert f"ended as {state}" in watch.check()


def test_a_job_that_slurm_itself_requeued_is_left_alone(watch):
    watch.commands(squeue=in_queue("PENDING", "BeginTime"), sacct="echo '17|PREEMPTED'")
    assert watch.check() == "watched"
    assert not watch.calls("scontrol")


@pytest.mark.parametrize("answer", ["echo '17|UNKNOWN'", "exit 0"])
def test_a_job_that_slurm_has_forgotten_is_judged_by_its_outputs(watch, answer, monkeypatch):
    watch.commands(squeue=INVALID, sacct=answer)
    assert watch.check() == "watched"
    monkeypatch.setattr(module, "FORGOTTEN_SECONDS", 0.0)
    assert "its outputs are missing" in watch.check()
    (watch.folder / "run.json").touch()
    assert watch.check() == "success"


def test_without_accounting_squeue_alone_is_asked_and_that_is_reported_once(watch, monkeypatch):
    watch.commands(squeue=in_queue("RUNNING"), sacct=UNACCOUNTED)
    assert [watch.check(), watch.check()] == ["watched", "watched"]
    watch.commands(squeue=INVALID)
    monkeypatch.setattr(module, "LONGEST_INTERVAL", 0)
    assert "its outputs are missing" in watch.check()
    assert len([message for message in watch.messages if "accounting storage" in message]) == 1


def test_a_silent_controller_ends_no_job(watch):
    watch.commands(squeue=SILENT, scontrol=SILENT)
    assert watch.check() == "watched"
    watch.commands(sacct="echo '17|PREEMPTED'")
    assert watch.check() == "watched"
    watch.commands(sacct="echo '17|COMPLETED'")
    assert watch.check() == "success"
    assert len([message for message in watch.messages if "does not answer" in message]) == 1


@pytest.mark.parametrize("number", ["17_3", "4294967297"])
def test_numbers_of_arrays_and_federations_are_asked_for_on_their_cluster(watch, number):
    watch.commands(squeue=f"echo 'CLUSTER: beta'; {in_queue('COMPLETED', number=number)}")
    assert watch.check(number, "beta") == "success"
    assert f"--jobs={number}" in watch.calls("squeue")
    assert "--clusters=beta" in watch.calls("squeue")


def test_a_job_held_after_a_failed_launch_is_released(watch):
    watch.commands(squeue=in_queue("PENDING", "launch failed requeued held"))
    assert watch.check() == "watched"
    assert watch.calls("scontrol") == "release 17\n"


def test_a_reason_that_does_not_pass_is_reported_again_when_it_changes(watch):
    for reason in ("Priority", "JobHeldAdmin", "JobHeldAdmin", "PartitionDown", "Resources"):
        watch.commands(squeue=in_queue("PENDING", reason))
        assert watch.check() == "watched"
    assert [message.rsplit(": ", 1)[1] for message in watch.messages] == [
        "JobHeldAdmin",
        "PartitionDown",
    ]


def test_an_error_that_no_retry_can_help_is_the_runs_own_line(watch):
    (watch.folder / "error.txt").write_text("config: wrong key\n")
    watch.job.resources["no_retry_file"] = str(watch.folder / "error.txt")
    watch.commands(squeue=in_queue("FAILED"))
    watch.check()
    assert watch.executor._hopeless[watch.job] == "fine_tune vit seed 0: config: wrong key"

"""The executor's judgement of answers that a test cluster does not give at will.

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
from waiting import wait_until

from snakemake_executor_plugin_cae_slurm import Executor, ExecutorSettings
from snakemake_executor_plugin_cae_slurm import executor as module

INVALID = "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1"
SILENT = "echo 'Unable to contact slurm controller (connect failure)' >&2; exit 1"
UNACCOUNTED = "echo 'Slurm accounting storage is disabled' >&2; exit 1"


class Job(SimpleNamespace):
    """A job, as far as the executor looks at it."""

    __hash__ = object.__hash__

    class Resources(dict):
        """A mapping whose keys are attributes as well, as Snakemake's is."""

        __getattr__ = dict.get


class Watch:
    """An executor that submits jobs and watches job 17, and what it reports."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.messages, self.ends, self.submitted = folder, [], [], []
        self.executor = executor = Executor.__new__(Executor)
        settings = ExecutorSettings(init_seconds_before_status_checks=3, keep_successful_logs=True)
        executor.workflow = SimpleNamespace(executor_settings=settings, workdir_init=str(folder))
        executor.slurm_logdir = folder
        executor._failed_nodes, executor._partitions, executor._fallback_partition = (
            (),
            None,
            "main",
        )
        executor.format_job_exec = lambda job: "true"
        executor.logger = SimpleNamespace(warning=self.messages.append, info=self.messages.append)
        executor._next_seconds_between_status_checks = 3
        executor.status_rate_limiter = Throttler(rate_limit=1000, period=1)
        executor._closing, executor._main_event_loop = threading.Event(), None
        executor._refused, executor._reported, executor._unknown_since = {}, {}, {}
        executor.report_job_submission = self.submitted.append
        executor.report_job_success = lambda info: self.ends.append("success")
        executor.report_job_error = lambda info, msg, **_: self.ends.append(msg)
        self.job = Job(
            name="fine_tune",
            wildcards={"experiment": "vit", "seed": "0"},
            resources=Job.Resources(),
            threads=1,
            attempt=1,
            restart_times=5,
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
    monkeypatch.setattr(module, "FORGOTTEN_SECONDS", 0.0)
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


def test_an_error_that_no_retry_can_help_is_the_runs_own_line_and_ends_the_retries(watch):
    (watch.folder / "error.txt").write_text("config: wrong key\n")
    watch.job.resources["no_retry_file"] = str(watch.folder / "error.txt")
    watch.commands(squeue=in_queue("FAILED"))
    assert watch.check() == "vit.seed0.fine_tune: config: wrong key"
    assert watch.job.restart_times < watch.job.attempt


def test_settings_of_the_user_do_not_reach_slurms_commands(watch, monkeypatch):
    for name in ("SLURM_TIME_FORMAT", "SQUEUE_FORMAT", "SQUEUE_PARTITION", "SACCT_FORMAT"):
        monkeypatch.setenv(name, "relative")
    watch.commands(squeue=f"env >> squeue.env; {in_queue('RUNNING')}", sacct="env >> sacct.env")
    monkeypatch.chdir(watch.folder)
    assert watch.check() == "watched"
    seen = (watch.folder / "squeue.env").read_text() + (watch.folder / "sacct.env").read_text()
    assert "PATH=" in seen
    assert "=relative" not in seen


@pytest.mark.parametrize(
    ("printed", "number", "cluster"),
    [
        ("17", "17", None),
        ("4294967297;alpha", "4294967297", "alpha"),
        ("Welcome to cluster 5, in service since 2021.\n\n17", "17", None),
        ("17;beta\nYour project has used 33% of 2000 hours", "17", "beta"),
        ("Submitted as you wished, thank you", "23", None),
    ],
)
def test_the_number_of_a_job_is_found_whatever_a_site_prints(watch, printed, number, cluster):
    found = "case $* in *--name=vit.seed0.fine_tune.*) echo '23|RUNNING|None';; esac"
    watch.commands(sbatch=f"cat >/dev/null; echo '{printed}'", squeue=found)
    watch.executor.run_job(watch.job)
    assert not watch.ends
    (info,) = watch.submitted
    assert (info.external_jobid, info.aux["cluster"]) == (number, cluster)


def test_a_refusal_for_now_is_reported_once_and_ends_when_it_has_passed(watch, monkeypatch):
    limit = "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation"
    script = f"cat >/dev/null; [ $(wc -l < sbatch.calls) -gt 3 ] && echo 17 && exit; echo '{limit}'"
    watch.commands(sbatch=f"{script} >&2; exit 1", squeue="exit 0")
    monkeypatch.chdir(watch.folder)
    watch.executor.run_job(watch.job, 0.01)
    wait_until("the submission", lambda: watch.submitted or watch.ends)
    assert not watch.ends
    assert len(watch.messages) == 2  # and the number of the job
    assert watch.job.attempt == 1


def test_a_refusal_for_good_is_one_line_and_the_like_is_not_submitted_again(watch):
    watch.job.resources |= {"slurm_partition": "nowhere", "no_retry_file": f"{watch.folder}/error"}
    reason = "Batch job submission failed: Invalid partition name specified"
    watch.commands(sbatch=f"cat >/dev/null; echo '{reason}' >&2; exit 1", squeue="exit 0")
    watch.executor.run_job(watch.job)
    assert watch.job.restart_times < watch.job.attempt
    other = Job(**vars(watch.job) | {"wildcards": {"experiment": "swin", "seed": "0"}})
    watch.executor.run_job(other)
    refusal = "SLURM refuses the job for good: Invalid partition name specified; change "
    lines = [
        f"{name}.seed0.fine_tune: {refusal}slurm_partition: nowhere" for name in ("vit", "swin")
    ]
    assert watch.ends == lines
    assert len(watch.calls("sbatch").splitlines()) == 1
    assert (watch.folder / "error").read_text().startswith("SLURM refuses")

"""The executor: submit, watch and cancel jobs by number."""

import asyncio
import contextlib
import os
import re
import shlex
import subprocess
import threading
import time
from collections import defaultdict
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional

import snakemake_executor_plugin_slurm as slurm
from snakemake_executor_plugin_slurm.submit_string import get_submit_command
from snakemake_executor_plugin_slurm.utils import get_job_wildcards, set_gres_string
from snakemake_executor_plugin_slurm.validation import validate_slurm_extra
from snakemake_interface_executor_plugins.executors.base import SubmittedJobInfo
from snakemake_interface_executor_plugins.jobs import JobExecutorInterface

from . import commands
from .commands import JobState
from .naming import advice, describe, job_name, parse_submission, request
from .naming import cluster as cluster_of
from .refusals import Refusal, classify

REQUEUE = "SNAKEMAKE_SLURM_REQUEUE"
FIRST_PAUSE, LONGEST_PAUSE = 15.0, 300.0  # s between submissions that are refused for now
LONGEST_INTERVAL = 60  # s between questions about jobs
FORGOTTEN_SECONDS = 600.0  # of a job that neither the controller nor the accounting knows

FAILED = ("BOOT_FAIL", "CANCELLED", "DEADLINE", "FAILED", "OUT_OF_MEMORY", "TIMEOUT", "ERROR")
LOST = ("PREEMPTED", "NODE_FAIL")
REMEDIES = {"OUT_OF_MEMORY": "; raise `mem_mb`", "TIMEOUT": "; raise `runtime`"}
# Reasons that pass by themselves. Every other one is reported.
ORDINARY = re.compile(
    r"^$|None|Priority|Resources|Dependency|BeginTime|Cleaning|Prolog|Licenses|Scheduling"
    r"|\w*(JobsLimit|Grp\w*Limit|JobLimit|MaxJobs\w*|ThrottlingLimit|PerUser\w*|TaskLimit)$"
)
REQUEUED_HELD = ("launch failed requeued held", "job requeued in held state")


@dataclass
class ExecutorSettings(slurm.ExecutorSettings):
    """Settings of the parent, whose status command is of no use here."""

    status_command: Optional[str] = field(  # noqa: UP045 (the command line needs it so)
        default=None,
        metadata={"help": "Ignored by this executor.", "env_var": False, "required": False},
    )


class Executor(slurm.Executor):
    """SLURM jobs, submitted as the parent composes them and judged by their numbers."""

    def __post_init__(self, test_mode: bool = False) -> None:
        self._closing = threading.Event()
        self._pauses: dict[JobExecutorInterface, float] = {}
        self._refused: dict[tuple, Refusal] = {}  # by what was asked for
        self._hopeless: dict[JobExecutorInterface, str] = {}  # jobs not to be tried again, and why
        self._printed: set[JobExecutorInterface] = set()
        self._reported: dict[str, str] = {}  # what was last reported of a job, or of SLURM
        self._missing: dict[str, float] = {}  # since when a job is unknown
        self._accounting_asked = False
        super().__post_init__(test_mode)

    # Submission

    def run_job(self, job: JobExecutorInterface) -> None:
        """Submit a job; repeat it later, or report the error, if it is refused."""
        try:
            if refusal := self._refused.get(request(job)):
                self._hopeless.setdefault(job, advice(job, refusal))
            if job in self._hopeless:
                self._give_up(job, self._hopeless[job])
            else:
                self._submit(job)
        except Exception as error:  # this is a worker thread: nothing else reports it
            self._report_job_error_threadsafe(SubmittedJobInfo(job), f"not submitted: {error}. ")

    def _submit(self, job: JobExecutorInterface) -> None:
        if (file := job.resources.get("no_retry_file")) and job.attempt == 1:
            Path(file).unlink(missing_ok=True)  # of an earlier start
        name = job_name(job, self.workflow.workdir_init, self._prefix())
        self._make_way(job, name)
        logfile = self._logfile(job)
        done = subprocess.run(
            f"{self._command(job, name, logfile)} /dev/stdin",
            shell=True,
            text=True,
            input=f"#!/bin/sh\n{self.format_job_exec(job)}\n",
            capture_output=True,
            env={**commands.environment(), REQUEUE: "1"},
        )
        if done.returncode:
            self._handle_refusal(job, done.stderr)
            return
        number, cluster = parse_submission(done.stdout)
        number = number or max(commands.jobs_named(name, cluster_of(job)), key=_order, default=None)
        if number is None:
            raise RuntimeError(f"sbatch printed no job number: {done.stdout.strip()!r}")
        self._pauses.pop(job, None)
        self._reported.pop("submission", None)
        logfile = Path(str(logfile).replace("%j", number))
        self.logger.info(f"{describe(job)}: SLURM job {number}, {name} (log: {logfile})")
        aux = {"slurm_logfile": logfile, "cluster": cluster or cluster_of(job), "name": name}
        self._report_job_submission_threadsafe(SubmittedJobInfo(job, number, aux))

    def _command(self, job: JobExecutorInterface, name: str, logfile: Path) -> str:
        """Return the parent's `sbatch` command under our name, its script missing."""
        validate_slurm_extra(job)
        account = next(self.get_account_arg(job))
        wildcards = get_job_wildcards(job)
        params = {
            "run_uuid": name,
            "slurm_logfile": logfile,
            "comment_str": f"rule_{job.name}" + (f"_wildcards_{wildcards}" if wildcards else ""),
            # A dependency in `slurm_extra` comes later in the command and replaces this one.
            "account": f"{account} --dependency=singleton",
            "partition": self.get_partition_arg(job),
            "workdir": self.workflow.workdir_init,
        }
        settings, nodes = self.workflow.executor_settings, self._failed_nodes
        return get_submit_command(job, params, settings, nodes) + set_gres_string(job)

    def get_account_arg(self, job: JobExecutorInterface):
        """Yield the option for the job's account; `sbatch` itself checks it, or has a default.

        The parent asks `sacctmgr` first, which fails without accounting.
        """
        account = job.resources.get("slurm_account")
        yield f"--account={shlex.quote(str(account))}" if account else ""

    def _logfile(self, job: JobExecutorInterface) -> Path:
        kind = f"group_{job.name}" if job.is_group() else f"rule_{job.name}"
        folder = self.slurm_logdir / kind / get_job_wildcards(job)
        folder.mkdir(parents=True, exist_ok=True)
        return folder / "%j.log"

    def _prefix(self) -> str:
        return self.workflow.executor_settings.jobname_prefix or ""

    def _make_way(self, job: JobExecutorInterface, name: str, own: str | None = None) -> None:
        """Cancel pending jobs of an earlier Snakemake for the same outputs; report running ones."""
        cluster = cluster_of(job)
        for number, state in commands.jobs_named(name, cluster).items():
            if number == own:
                continue
            if state.word == "PENDING":
                commands.ask("scancel", number, cluster=cluster)
                self.logger.info(f"{describe(job)}: replaces the pending SLURM job {number}")
            elif state.word != "COMPLETING":
                self._say_once(
                    name,
                    f"{describe(job)}: SLURM job {number} of an earlier start still runs; the new "
                    "job waits for it in the queue",
                )

    def _handle_refusal(self, job: JobExecutorInterface, errors: str) -> None:
        refusal = classify(errors, others_queued=commands.has_jobs(cluster_of(job)))
        if refusal.transient:
            self._say_once("submission", f"SLURM takes no jobs at the moment ({refusal.message}); "
                           "submissions are repeated until it does")  # fmt: skip
            self._submit_later(job)
        elif refusal.resources:
            self._refused[request(job)] = refusal
            self._give_up(job, advice(job, refusal))
        else:
            message = f"SLURM refuses the job: {refusal.message}. "
            self._report_job_error_threadsafe(SubmittedJobInfo(job), message)

    def _submit_later(self, job: JobExecutorInterface) -> None:
        pause = self._pauses.get(job, FIRST_PAUSE)
        self._pauses[job] = min(2 * pause, LONGEST_PAUSE)

        def again() -> None:
            if not self._closing.is_set():
                self.run_job(job)

        timer = threading.Timer(pause, again)
        timer.daemon = True
        timer.start()

    def _give_up(self, job: JobExecutorInterface, reason: str) -> None:
        """Report an error that no retry can help; retries of Snakemake's end here at once."""
        self._hopeless[job] = reason
        if file := job.resources.get("no_retry_file"):
            with contextlib.suppress(OSError):
                Path(file).parent.mkdir(parents=True, exist_ok=True)
                Path(file).write_text(f"{reason}\n")
        self._report_job_error_threadsafe(SubmittedJobInfo(job), reason)

    def print_job_error(self, job_info: SubmittedJobInfo, msg: str | None = None, **kwargs) -> None:
        """Print an error; one that no retry can help in one line, and once."""
        job = job_info.job
        if job not in self._hopeless:
            super().print_job_error(job_info, msg, **kwargs)
        elif job not in self._printed:
            self._printed.add(job)
            self.logger.error(self._hopeless[job])

    def printjob(self, job: JobExecutorInterface) -> None:
        """Print that a job starts, unless it will fail at once."""
        if job not in self._hopeless:
            super().printjob(job)

    # Status

    async def check_active_jobs(
        self, active_jobs: list[SubmittedJobInfo]
    ) -> AsyncGenerator[SubmittedJobInfo, None]:
        """Yield the jobs that are still to be watched; report the end of the others."""
        first = self.workflow.executor_settings.init_seconds_before_status_checks
        waited = self.next_seconds_between_status_checks or first
        self.next_seconds_between_status_checks = first
        if not active_jobs:
            return
        async with self.status_rate_limiter:
            states = await asyncio.to_thread(self._states, active_jobs)
        ended = False
        for info in active_jobs:
            if self._is_over(info, states.get(_key(info))):
                ended = True
            else:
                yield info
        if not ended:
            self.next_seconds_between_status_checks = min(waited + 10, LONGEST_INTERVAL)

    def _states(self, jobs: list[SubmittedJobInfo]) -> dict[tuple, JobState]:
        """Return the states of the jobs that SLURM knows, by cluster and number."""
        numbers: dict[str | None, set[str]] = defaultdict(set)
        for info in jobs:
            numbers[info.aux.get("cluster")].add(info.external_jobid)
        found: dict[tuple, JobState] = {}
        for cluster, wanted in numbers.items():
            for number, state in self._states_on(cluster, wanted).items():
                found[cluster, number] = state
        return found

    def _states_on(self, cluster: str | None, wanted: set[str]) -> dict[str, JobState]:
        queued = commands.queue_states(wanted, cluster)
        silent = queued is None
        if silent:
            self._say_once("controller", "SLURM's controller does not answer; asking again")
        else:
            self._reported.pop("controller", None)
        missing = wanted - (queued or {}).keys()
        recorded = self._recorded(missing, cluster)
        waiting = {number: JobState("PENDING") for number in missing} if silent else {}
        return waiting | recorded | (queued or {})

    def _recorded(self, missing: set[str], cluster: str | None) -> dict[str, JobState]:
        """Ask the accounting about jobs that the controller forgot, and once at the start."""
        if not missing and self._accounting_asked:
            return {}
        self._accounting_asked = True
        recorded = commands.recorded_states(missing or {"1"}, cluster)
        if isinstance(recorded, str):
            self._say_once(
                "accounting", f"sacct does not answer ({recorded}); asking squeue alone for states"
            )
            return {}
        self._reported.pop("accounting", None)
        return recorded

    def _is_over(self, info: SubmittedJobInfo, state: JobState | None) -> bool:
        """Judge the state of a job and report its end."""
        number = info.external_jobid
        if state is None or state.word == "UNKNOWN":
            return self._judge_unknown(info)
        self._missing.pop(number, None)
        if state.word == "COMPLETED":
            self._succeed(info)
        elif state.word in LOST:
            return not self._put_back(info) and self._fail(info, state.word)
        elif state.word in FAILED:
            return self._fail(info, state.word)
        else:
            if state.word in ("PENDING", "REQUEUE_HOLD", "SPECIAL_EXIT"):
                self._look_after_pending(info, state)
            return False
        return True

    def _judge_unknown(self, info: SubmittedJobInfo) -> bool:
        """Judge a job that SLURM has forgotten by its outputs, once that is certain."""
        number = info.external_jobid
        since = self._missing.setdefault(number, time.monotonic())
        accounted = "accounting" not in self._reported
        if time.monotonic() - since < (FORGOTTEN_SECONDS if accounted else LONGEST_INTERVAL / 2):
            return False
        if all(os.path.exists(file) for file in info.job.output):
            self._succeed(info)
            return True
        return self._fail(info, "UNKNOWN: SLURM has forgotten it, and its outputs are missing")

    def _put_back(self, info: SubmittedJobInfo) -> bool:
        """Return a job that SLURM took away to the queue, unless SLURM itself does."""
        number, cluster = info.external_jobid, info.aux.get("cluster")
        answer = commands.ask("scontrol", "requeue", number, cluster=cluster)
        return not answer.failed or "Unable to contact" in answer.failed

    def _look_after_pending(self, info: SubmittedJobInfo, state: JobState) -> None:
        """Release a job that SLURM holds after a failed launch; report why another cannot start."""
        number, cluster = info.external_jobid, info.aux.get("cluster")
        if state.reason in REQUEUED_HELD:
            commands.ask("scontrol", "release", number, cluster=cluster)
        elif state.reason == "Dependency" and "name" in info.aux:
            self._make_way(info.job, info.aux["name"], own=number)
        elif not ORDINARY.match(state.reason):
            self._say_once(
                number, f"{describe(info.job)}: SLURM job {number} does not start: {state.reason}"
            )
        else:
            self._reported.pop(number, None)

    def _succeed(self, info: SubmittedJobInfo) -> None:
        self.report_job_success(info)
        if not self.workflow.executor_settings.keep_successful_logs:
            info.aux["slurm_logfile"].unlink(missing_ok=True)

    def _fail(self, info: SubmittedJobInfo, word: str) -> bool:
        final = info.job.resources.get("no_retry_file")
        if final and (reason := _first_line(Path(final))):
            self._hopeless[info.job] = f"{describe(info.job)}: {reason}"
        message = f"SLURM job {info.external_jobid} ended as {word}{REMEDIES.get(word, '')}. "
        self.report_job_error(info, msg=message, aux_logs=[str(info.aux["slurm_logfile"])])
        return True

    def _say_once(self, topic: str, message: str) -> None:
        if self._reported.get(topic) != message:
            self._reported[topic] = message
            self.logger.warning(message)

    # End

    def cancel_jobs(self, active_jobs: list[SubmittedJobInfo]) -> None:
        """Cancel jobs, each on its cluster."""
        self._closing.set()
        numbers: dict[str | None, list[str]] = defaultdict(list)
        for info in active_jobs:
            if info.external_jobid is not None:
                numbers[(info.aux or {}).get("cluster")].append(info.external_jobid)
        for cluster, chosen in numbers.items():
            answer = commands.ask("scancel", *chosen, cluster=cluster)
            if answer.failed and "Invalid job id" not in answer.failed:
                self.logger.warning(f"jobs {' '.join(chosen)} not cancelled: {answer.failed}")

    def shutdown(self) -> None:
        """End without further submissions."""
        self._closing.set()
        super().shutdown()


def _key(info: SubmittedJobInfo) -> tuple[str | None, str]:
    return info.aux.get("cluster"), info.external_jobid


def _order(number: str) -> int:
    return int(re.match(r"\d+", number)[0])


def _first_line(path: Path) -> str:
    try:
        return path.read_text().strip().partition("\n")[0]
    except OSError:
        return ""

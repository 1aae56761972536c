"""The executor: submit, watch and cancel jobs by number."""

import asyncio
import contextlib
import os
import re
import shlex
import subprocess
import threading
import time
import zlib
from collections import defaultdict
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional

import snakemake_executor_plugin_slurm as parent
from snakemake_executor_plugin_slurm.submit_string import get_submit_command
from snakemake_executor_plugin_slurm.utils import get_job_wildcards, set_gres_string
from snakemake_executor_plugin_slurm.validation import validate_slurm_extra
from snakemake_interface_executor_plugins.executors.base import SubmittedJobInfo
from snakemake_interface_executor_plugins.jobs import JobExecutorInterface

from . import slurm

FIRST_PAUSE, LONGEST_PAUSE = 15.0, 300.0  # s between submissions that are refused for now
LONGEST_INTERVAL = 60  # s between questions about jobs
FORGOTTEN_SECONDS = 60.0  # of a job without outputs that neither controller nor accounting knows
FORGOTTEN = "UNKNOWN: SLURM has forgotten it, and its outputs are missing"
REMEDIES = {"OUT_OF_MEMORY": "; raise `mem_mb`", "TIMEOUT": "; raise `runtime`"}


@dataclass
class ExecutorSettings(parent.ExecutorSettings):
    """Settings of the parent, whose status command is of no use here."""

    status_command: Optional[str] = field(  # noqa: UP045 (the command line needs it so)
        default=None,
        metadata={"help": "Ignored by this executor.", "env_var": False, "required": False},
    )


class Executor(parent.Executor):
    """SLURM jobs, submitted as the parent composes them and judged by their numbers."""

    def __post_init__(self, test_mode: bool = False) -> None:
        self._closing = threading.Event()
        self._refused: dict[tuple, str] = {}  # what is asked for in vain, and why
        self._reported: dict[str, str] = {}  # what was last reported of a job, or of SLURM
        self._unknown_since: dict[str, float] = {}
        super().__post_init__(test_mode)

    # Submission

    def run_job(self, job: JobExecutorInterface, pause: float = FIRST_PAUSE) -> None:
        """Submit a job; repeat that after a pause, or report the error, if it is refused."""
        try:
            if reason := self._refused.get(request(job)):
                self._give_up(SubmittedJobInfo(job), reason)
            elif not self._closing.is_set():
                self._submit(job, pause)
        except Exception as error:  # this is a worker thread: nothing else reports it
            self._report_job_error_threadsafe(SubmittedJobInfo(job), f"not submitted: {error}. ")

    def _submit(self, job: JobExecutorInterface, pause: float) -> None:
        cluster, label = own_cluster(job), describe(job)
        name = f"{self.workflow.executor_settings.jobname_prefix or ''}{label}.{self._mark(job)}"
        if (file := job.resources.get("no_retry_file")) and job.attempt == 1:
            Path(file).unlink(missing_ok=True)  # of an earlier start
        self._make_way(job, name, cluster)
        kind = f"{'group' if job.is_group() else 'rule'}_{job.name}"
        logfile = self.slurm_logdir / kind / get_job_wildcards(job) / "%j.log"
        logfile.parent.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(
            f"{self._command(job, name, logfile)} /dev/stdin",
            shell=True,
            text=True,
            input=f"#!/bin/sh\n{self.format_job_exec(job)}\n",
            capture_output=True,
        )
        if done.returncode:
            self._handle_refusal(job, done.stderr, pause)
            return
        # A site's banners may surround the number, or replace it.
        lines = re.findall(r"^(\d+)(?:;(\S+))?\s*$", done.stdout, re.MULTILINE)
        if not lines:
            lines = [(number, "") for number in slurm.own_jobs(cluster, f"--name={name}")]
        if not lines:
            raise RuntimeError(f"sbatch printed no job number: {done.stdout.strip()!r}")
        number, printed = max(lines, key=lambda line: int(line[0]))
        logfile = Path(str(logfile).replace("%j", number))
        self.logger.info(f"{label}: SLURM job {number}, {name} (log: {logfile})")
        aux = {"slurm_logfile": logfile, "cluster": printed or cluster, "name": name}
        self._report_job_submission_threadsafe(SubmittedJobInfo(job, number, aux))

    def _command(self, job: JobExecutorInterface, name: str, logfile: Path) -> str:
        """Return the parent's `sbatch` command under our name, its script missing."""
        validate_slurm_extra(job)
        params = {
            "run_uuid": name,
            "slurm_logfile": logfile,
            "comment_str": f"rule_{job.name}_wildcards_{get_job_wildcards(job)}",
            "account": next(self.get_account_arg(job)),
            "partition": self.get_partition_arg(job),
            "workdir": self.workflow.workdir_init,
        }
        settings, nodes = self.workflow.executor_settings, self._failed_nodes
        return get_submit_command(job, params, settings, nodes) + set_gres_string(job)

    def additional_general_args(self) -> str:
        """Return what else the Snakemake of a job is called with.

        What a failed job wrote is removed where the workflow runs, not on the node: one that SLURM
        gave up may still be at work, and would remove what the job's next attempt has written.
        """
        return f"{super().additional_general_args()} --keep-incomplete"

    def get_account_arg(self, job: JobExecutorInterface):
        """Yield the option for the job's account, which the parent would ask the accounting for.

        Options of ours come with it; those in `slurm_extra` come later and replace them.
        """
        account = job.resources.get("slurm_account")
        named = f"--account={shlex.quote(str(account))} " if account else ""
        yield f"{named}--dependency=singleton --export=ALL,SNAKEMAKE_SLURM_REQUEUE=1"

    def _mark(self, job: JobExecutorInterface) -> str:
        """Return four digits that tell the results folders of one user apart."""
        place = f"{self.workflow.workdir_init}//{min(map(str, job.output), default='')}"
        return f"{zlib.crc32(os.fsencode(place)) & 0xFFFF:04x}"

    def _make_way(
        self, job: JobExecutorInterface, name: str, cluster: str | None, own: str | None = None
    ) -> None:
        """Cancel pending jobs of an earlier Snakemake for the same outputs; report running ones."""
        for number, (state, _) in slurm.own_jobs(cluster, f"--name={name}").items():
            if number != own and state == "PENDING":
                slurm.order(cluster, "scancel", number)
                self.logger.info(f"{describe(job)}: replaces the pending SLURM job {number}")
            elif number != own and state != "COMPLETING":
                message = "of an earlier start still runs; the new job waits for it in the queue"
                self._report_once(name, f"{describe(job)}: SLURM job {number} {message}")

    def _handle_refusal(self, job: JobExecutorInterface, errors: str, pause: float) -> None:
        others = bool(slurm.own_jobs(own_cluster(job)))
        message, transient, settings = slurm.judge_refusal(errors, others_queued=others)
        if transient:
            later = "submissions are repeated until it does"
            self._report_once(message, f"SLURM takes no jobs at the moment ({message}); {later}")
            following = min(2 * pause, LONGEST_PAUSE)
            timer = threading.Timer(pause, self.run_job, (job, following))
            timer.daemon = True
            timer.start()
        elif settings:
            asked = [
                f"{key}: {job.resources.get(key)}" for key in settings if job.resources.get(key)
            ]
            change = ", ".join(asked) or f"one of {', '.join(settings)}"
            reason = f"SLURM refuses the job for good: {message}; change {change}"
            self._refused[request(job)] = reason
            self._give_up(SubmittedJobInfo(job), reason)
        else:
            info, text = SubmittedJobInfo(job), f"SLURM refuses the job: {message}. "
            self._report_job_error_threadsafe(info, text)

    def _give_up(self, info: SubmittedJobInfo, reason: str) -> None:
        """Report an error that no retry can help, in one line, and let none be made."""
        with contextlib.suppress(OSError):
            file = Path(info.job.resources.get("no_retry_file") or os.devnull)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"{reason}\n")
        info.job.attempt = info.job.restart_times + 1
        info.aux = {**(info.aux or {}), "final": True}
        self._report_job_error_threadsafe(info, f"{describe(info.job)}: {reason}")

    def print_job_error(self, job_info: SubmittedJobInfo, msg: str | None = None, **kwargs) -> None:
        """Print an error; one that no retry can help in one line."""
        if (job_info.aux or {}).get("final"):
            self.logger.error(msg)
        else:
            super().print_job_error(job_info, msg, **kwargs)

    # Status

    async def check_active_jobs(
        self, active_jobs: list[SubmittedJobInfo]
    ) -> AsyncGenerator[SubmittedJobInfo, None]:
        """Yield the jobs that are still to be watched; report the end of the others."""
        pause, watched = self.next_seconds_between_status_checks, []
        if active_jobs:
            async with self.status_rate_limiter:
                states = await asyncio.to_thread(self._states, active_jobs)
            watched = [info for info in active_jobs if not self._ended(info, states)]
        first = self.workflow.executor_settings.init_seconds_before_status_checks
        quiet = active_jobs and len(watched) == len(active_jobs)
        following = min(pause + 10, LONGEST_INTERVAL) if quiet else first
        self.next_seconds_between_status_checks = following
        for info in watched:
            yield info

    def _states(self, jobs: list[SubmittedJobInfo]) -> dict[tuple, tuple[str, ...]]:
        """Return state and reason of the jobs that SLURM knows, by cluster and number."""
        numbers: dict[str | None, set[str]] = defaultdict(set)
        for info in jobs:
            numbers[info.aux["cluster"]].add(info.external_jobid)
        return {
            (cluster, number): state
            for cluster, wanted in numbers.items()
            for number, state in self._states_on(cluster, wanted).items()
        }

    def _states_on(self, cluster: str | None, wanted: set[str]) -> dict[str, tuple[str, ...]]:
        """Ask the controller, and the accounting about jobs that the controller has forgotten."""
        found: dict[str, tuple[str, ...]] = {}
        try:
            found = slurm.queued(cluster, "--states=all", f"--jobs={','.join(sorted(wanted))}")
            missing, otherwise = wanted - found.keys(), {}
            self._reported.pop("controller", None)
        except slurm.NoAnswerError:
            missing, otherwise = wanted, dict.fromkeys(wanted, ("PENDING", ""))
            self._report_once("controller", "SLURM's controller does not answer; asking again")
        if not missing and "accounting" in self._reported:
            return found
        try:  # once at the start in any case, to tell a site without accounting
            recorded = slurm.recorded(cluster, ",".join(sorted(missing)) or "1")
            self._reported["accounting"] = ""
        except slurm.NoAnswerError as error:
            recorded, only = {}, "asking squeue alone for states"
            self._report_once("accounting", f"sacct does not answer ({error}); {only}")
        return otherwise | recorded | found

    def _ended(self, info: SubmittedJobInfo, states: dict[tuple, tuple[str, ...]]) -> bool:
        """Judge the state of a job; report its end."""
        number, cluster = info.external_jobid, info.aux["cluster"]
        state, reason = states.get((cluster, number), ("UNKNOWN", ""))
        if state == "UNKNOWN":
            since = self._unknown_since.setdefault(number, time.monotonic())
            if time.monotonic() - since < FORGOTTEN_SECONDS:
                return False
            state = "COMPLETED" if all(map(os.path.exists, info.job.output)) else FORGOTTEN
        else:
            self._unknown_since.pop(number, None)
        if state in slurm.TAKEN_AWAY:  # back to the queue, unless SLURM itself has put it there
            error = slurm.order(cluster, "scontrol", "requeue", number)
            if error and "Unable to contact" not in error:
                return self._fail(info, state)
        elif state in (*slurm.FAILED, FORGOTTEN):
            return self._fail(info, state)
        elif state in ("PENDING", "REQUEUE_HOLD", "SPECIAL_EXIT"):
            self._look_after_pending(info, reason)
        elif state == "COMPLETED":
            self.report_job_success(info)
            if not self.workflow.executor_settings.keep_successful_logs:
                with contextlib.suppress(OSError):
                    info.aux["slurm_logfile"].unlink()
            return True
        return False

    def _look_after_pending(self, info: SubmittedJobInfo, reason: str) -> None:
        """Release a job that SLURM holds after a failed launch; report why another cannot start."""
        number, cluster = info.external_jobid, info.aux["cluster"]
        if reason in slurm.HELD_AFTER_LAUNCH:
            slurm.order(cluster, "scontrol", "release", number)
        elif not slurm.PASSING_REASONS.match(reason):
            message = f"{describe(info.job)}: SLURM job {number} does not start: {reason}"
            self._report_once(number, message)
            return
        elif reason == "Dependency":
            self._make_way(info.job, info.aux["name"], cluster, own=number)
        self._reported.pop(number, None)

    def _fail(self, info: SubmittedJobInfo, state: str) -> bool:
        """Report a failure: the job's own reason, if no retry can help, or else the state."""
        with contextlib.suppress(OSError):
            file = Path(info.job.resources.get("no_retry_file") or os.devnull)
            if reason := file.read_text().strip().partition("\n")[0]:
                self._give_up(info, reason)
                return True
        text = f"SLURM job {info.external_jobid} ended as {state}{REMEDIES.get(state, '')}. "
        self.report_job_error(info, msg=text, aux_logs=[str(info.aux["slurm_logfile"])])
        return True

    def _report_once(self, topic: str, message: str) -> None:
        if self._reported.get(topic) != message:
            self._reported[topic] = message
            self.logger.warning(message)

    # End

    def cancel_jobs(self, active_jobs: list[SubmittedJobInfo]) -> None:
        """Cancel jobs, each on its cluster; those that have ended are none of our concern."""
        self._closing.set()
        for cluster in {info.aux["cluster"] for info in active_jobs}:
            numbers = [
                info.external_jobid for info in active_jobs if info.aux["cluster"] == cluster
            ]
            error = slurm.order(cluster, "scancel", *numbers)
            if error and "Invalid job id" not in error:
                self.logger.warning(f"jobs {' '.join(numbers)} not cancelled: {error}")

    def shutdown(self) -> None:
        """End without further submissions."""
        self._closing.set()
        super().shutdown()


def describe(job: JobExecutorInterface) -> str:
    """Return what messages call a job: wildcards and rule, `vit_b_800.seed3.fine_tune`.

    A number is preceded by the name of its wildcard.
    """
    values = () if job.is_group() else job.wildcards.items()
    words = [f"{key}{value}" if str(value).isdigit() else str(value) for key, value in values]
    return ".".join(re.sub(r"[^\w.+-]", "_", word) for word in [*words, job.name])


def request(job: JobExecutorInterface) -> tuple:
    """Return what a job asks of SLURM, the same for jobs that differ in their files only."""
    own = ("tmpdir", "no_retry_file", "attempt")
    asked = ((key, str(value)) for key, value in job.resources.items() if key not in own)
    return (job.threads, *sorted(asked))


def own_cluster(job: JobExecutorInterface) -> str | None:
    """Return the cluster that a job asks for, None for the default one."""
    keys = ("cluster", "clusters", "slurm_cluster")
    return next((job.resources[key] for key in keys if job.resources.get(key)), None)

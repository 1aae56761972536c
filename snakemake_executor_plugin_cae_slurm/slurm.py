"""SLURM's commands, and what their words mean."""

import os
import re
import subprocess
from typing import NamedTuple

ANSWER_SECONDS = 60.0
# What users set for their own use of these commands.
OWN_SETTINGS = ("SQUEUE_", "SACCT_", "SLURM_TIME_FORMAT")

FAILED = ("BOOT_FAIL", "CANCELLED", "DEADLINE", "FAILED", "OUT_OF_MEMORY", "TIMEOUT", "ERROR")
TAKEN_AWAY = ("PREEMPTED", "NODE_FAIL")
HELD_AFTER_LAUNCH = ("launch failed requeued held", "job requeued in held state")
# Reasons for waiting that pass by themselves. Every other one is reported.
PASSING_REASONS = re.compile(
    r"(None|Priority|Resources|Dependency|BeginTime|Cleaning|Prolog|Licenses|Scheduling"
    r"|\w*(Grp|MaxJobs|PerUser|PerAccount|JobsLimit|ThrottlingLimit|TaskLimit)\w*)?$"
)

PASSING_REFUSALS = re.compile(
    r"MaxSubmit|GrpSubmit|timed out|unable to contact|zero bytes|temporarily un|connection"
    r"|not connected|standby mode|database timeout|partition not available|too many",
    re.IGNORECASE,
)
# The same words for a limit on the number of jobs, which passes, and on the size of one.
POLICY = re.compile(r"(; )?Job violates accounting/QOS policy \(.*?\)", re.IGNORECASE)
SIZE_LIMIT = re.compile(r"\b(QOS|Assoc)?(Max|Min)\w+")
REFUSED_SETTINGS = {
    r"invalid account": ("slurm_account", "slurm_partition"),
    r"\bpartition\b": ("slurm_partition",),
    r"\bqos specification": ("qos",),
    r"time limit|wall": ("runtime",),
    r"memory|MemPer": ("mem_mb", "mem_mb_per_cpu"),
    r"feature": ("constraint",),
    r"generic resource|\bGRES\b|TRES": ("gpu_model", "gpu", "gres"),
    r"node (configuration|count)|nodes requested|cpu count|cpus": (
        *("gpu_model", "gpu", "gres", "nodes", "constraint", "mem_mb"),
    ),
    r"reservation": ("reservation",),
    POLICY.pattern: ("qos", "runtime", "gpu", "nodes", "mem_mb"),
}


class NoAnswerError(Exception):
    """A command failed; the message is the last line of what it wrote."""


class Refusal(NamedTuple):
    """Why `sbatch` failed.

    Attributes:
        message: SLURM's reason in one line.
        transient: whether the same submission may succeed later.
        settings: what to change in one that is refused for good; empty if SLURM's words are not
            known, so that a retry is worthwhile.
    """

    message: str
    transient: bool
    settings: tuple[str, ...] = ()


def ask(cluster: str | None, command: str, *arguments: str) -> dict[str, tuple[str, ...]]:
    """Run a command, on another cluster than the default one if it is named.

    Returns:
        The other columns of each line by its first one; headers and banners have no columns.

    Raises:
        NoAnswerError: it is missing, fails, or takes more than a minute.
    """
    words = [command, *([f"--clusters={cluster}"] if cluster else []), *arguments]
    plain = {name: value for name, value in os.environ.items() if not name.startswith(OWN_SETTINGS)}
    options = {"env": plain, "capture_output": True, "text": True, "timeout": ANSWER_SECONDS}
    try:
        done = subprocess.run(words, **options)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoAnswerError(str(error)) from error
    if done.returncode:
        words = done.stderr.strip() or f"exit status {done.returncode}"
        raise NoAnswerError(words.splitlines()[-1])
    rows = (line.split("|") for line in done.stdout.splitlines() if "|" in line)
    return {number: tuple(columns) for number, *columns in rows}


def queued(cluster: str | None, *filters: str) -> dict[str, tuple[str, ...]]:
    """Return state and reason of the jobs that the controller remembers, by number."""
    try:
        return ask(cluster, "squeue", "--noheader", "--array", "--format=%i|%T|%r", *filters)
    except NoAnswerError as error:
        if "Invalid job id" in str(error):
            return {}
        raise


def own_jobs(cluster: str | None, *filters: str) -> dict[str, tuple[str, ...]]:
    """Return the same of the user's jobs that have not ended; of none without an answer."""
    try:
        return queued(cluster, f"--user={os.geteuid()}", *filters)
    except NoAnswerError:
        return {}


def order(cluster: str | None, command: str, *arguments: str) -> str:
    """Run a command that changes jobs; return its error, empty if there is none."""
    try:
        ask(cluster, command, *arguments)
    except NoAnswerError as error:
        return str(error)
    return ""


def recorded(cluster: str | None, numbers: str) -> dict[str, tuple[str, ...]]:
    """Return state and no reason of the jobs that the accounting holds, by number."""
    options = ("--allocations", "--parsable2", "--noheader", "--format=JobID,State")
    found = ask(cluster, "sacct", *options, f"--jobs={numbers}")
    return {number: ((state.split() or ["UNKNOWN"])[0], "") for number, (state,) in found.items()}


def judge_refusal(errors: str, *, others_queued: bool) -> Refusal:
    """Judge what `sbatch` wrote to standard error.

    Args:
        errors: its words.
        others_queued: whether the user has jobs in the queue: only then can an unnamed limit of
            the accounting be one on their number.
    """
    prefixes = r"^(sbatch: )?(error: )?(Batch job submission failed: )?"
    lines = (re.sub(prefixes, "", line).strip() for line in errors.splitlines())
    message = "; ".join(dict.fromkeys(filter(None, lines))) or "no reason given"
    named = POLICY.sub("", message)  # may be the name of the limit
    limit_on_number = named != message and others_queued and not SIZE_LIMIT.search(named)
    if PASSING_REFUSALS.search(message) or limit_on_number:
        return Refusal(message, transient=True)
    for text in (named, message):
        for words, settings in REFUSED_SETTINGS.items():
            if re.search(words, text, re.IGNORECASE):
                return Refusal(message, transient=False, settings=settings)
    return Refusal(message, transient=False)

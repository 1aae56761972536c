"""Questions to SLURM, asked so that the user's own settings do not change the answers."""

import os
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass

_QUIET = ("SQUEUE_", "SACCT_", "SLURM_TIME_FORMAT")
_CHUNK = 500  # jobs per question
_SECONDS = 60.0


@dataclass(frozen=True)
class JobState:
    """The state of a job, as `squeue` (or, if `recorded`, the accounting) knows it."""

    word: str
    reason: str = ""
    recorded: bool = False


@dataclass(frozen=True)
class Answer:
    """What a command of SLURM printed; `failed` holds its error message, if it failed."""

    text: str
    failed: str = ""


def environment() -> dict[str, str]:
    """Return the environment without the variables that change SLURM's output."""
    return {name: value for name, value in os.environ.items() if not name.startswith(_QUIET)}


def ask(command: str, *arguments: str, cluster: str | None = None) -> Answer:
    """Run one of SLURM's commands, on another cluster than the default one if it is named."""
    words = [command, *([f"--clusters={cluster}"] if cluster else []), *arguments]
    try:
        done = subprocess.run(
            words, env=environment(), capture_output=True, text=True, timeout=_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Answer("", str(error))
    failed = (done.stderr.strip() or f"exit status {done.returncode}") if done.returncode else ""
    return Answer(done.stdout, failed)


def queue_states(numbers: Iterable[str], cluster: str | None) -> dict[str, JobState] | None:
    """Return the states of the jobs that the controller remembers; None if it does not answer."""
    found: dict[str, JobState] = {}
    for chunk in _chunks(numbers):
        answer = ask(
            *("squeue", "--noheader", "--array", "--states=all", "--format=%i|%T|%r"),
            f"--jobs={','.join(chunk)}",
            cluster=cluster,
        )
        if answer.failed and "Invalid job id" not in answer.failed:
            return None
        for number, word, reason in _rows(answer.text, 3):
            found[number] = JobState(word, reason)
    return found


def recorded_states(numbers: Iterable[str], cluster: str | None) -> dict[str, JobState] | str:
    """Return the states of the jobs that the accounting holds, or why it does not answer."""
    found: dict[str, JobState] = {}
    for chunk in _chunks(numbers):
        answer = ask(
            *("sacct", "--allocations", "--parsable2", "--noheader", "--format=JobID,State"),
            f"--jobs={','.join(chunk)}",
            cluster=cluster,
        )
        if answer.failed:
            return answer.failed.splitlines()[-1]
        for number, words in _rows(answer.text, 2):
            found[number] = JobState(words.split()[0] if words.split() else "UNKNOWN", "", True)
    return found


def jobs_named(name: str, cluster: str | None) -> dict[str, JobState]:
    """Return the user's queued and running jobs of a name, by number."""
    answer = ask(
        *("squeue", "--noheader", f"--user={os.geteuid()}", f"--name={name}"),
        "--format=%i|%T|%r",
        cluster=cluster,
    )
    return {number: JobState(word, reason) for number, word, reason in _rows(answer.text, 3)}


def has_jobs(cluster: str | None) -> bool:
    """Return whether the user has any job in the queue."""
    answer = ask(
        "squeue", "--noheader", f"--user={os.geteuid()}", "--format=%i|%T", cluster=cluster
    )
    return bool(_rows(answer.text, 2))


def _rows(text: str, columns: int) -> list[list[str]]:
    """Split the lines that have all columns: headers of clusters and banners have not."""
    rows = (line.split("|", columns - 1) for line in text.splitlines())
    return [row for row in rows if len(row) == columns]


def _chunks(numbers: Iterable[str]) -> list[list[str]]:
    ordered = sorted(numbers)
    return [ordered[first : first + _CHUNK] for first in range(0, len(ordered), _CHUNK)]

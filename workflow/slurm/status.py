#!/usr/bin/env python3
"""Be `sacct` and `squeue` for Snakemake's SLURM executor: say how its jobs are, unmistakably.

The executor (2.8.0) takes three answers the wrong way, each for ever: `CANCELLED by 1000` and
`PREEMPTED`, where the job does not come back, leave it waiting for nothing; `UNKNOWN` is a success.
So the words are made plain here, and a job that was pre-empted, or lost with its node, is looked
for in the queue: if SLURM has not put it back, we do. It goes on from its checkpoint, and nobody
counts that as a failure. Nor does one stay in the queue for good that SLURM put back and then held,
because a node was not yet free of it.
"""

import os
import subprocess
import sys

import executor

TAKEN_AWAY = ("PREEMPTED", "NODE_FAIL", "UNKNOWN")
OVER = (
    *TAKEN_AWAY,
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "OUT_OF_MEMORY", "TIMEOUT"),
)


def main(command: str, arguments: list[str]) -> int:
    """Ask the real command about the jobs of the run, print its answer in plain words."""
    name = executor.option(arguments, "--name")
    jobs = executor.jobs(arguments[name]) if name else []
    if not jobs:
        os.execv(executor.real(command), [command, *arguments])
    arguments[name - 1 : name + 1] = [f"--jobs={','.join(jobs)}"]
    done = run(command, *arguments)
    if done.returncode and "Invalid job id" not in done.stderr:
        sys.stderr.write(done.stderr)
        return done.returncode
    if "PENDING" in done.stdout:
        release(jobs)
    for line in done.stdout.splitlines():
        job, separator, state = line.partition("|")
        print(f"{job}|{plain(job, state)}" if separator else line)
    return 0


def release(jobs: list[str]) -> None:
    """Let jobs start that SLURM holds after a failed launch: ours, and earlier ones of their names.

    The latter are those of a Snakemake that is gone, which ours wait for.
    """
    form = "--format=%i|%j|%r"
    found = run("squeue", "--noheader", "--states=PENDING", f"--user={os.geteuid()}", form)
    rows = [line.split("|", 2) for line in found.stdout.splitlines()]
    names = {name for job, name, reason in rows if job in jobs}
    for job, name, reason in rows:
        if name in names and "requeued held" in reason:
            run("scontrol", "release", job)


def plain(job: str, state: str) -> str:
    """Return the state of a job in a word that the executor understands."""
    word = state.split()[0] if state.split() else state
    return taken_away(job, word) if word in TAKEN_AWAY else word


def taken_away(job: str, state: str) -> str:
    """Return how it stands with a job that SLURM has taken away; put it back if SLURM did not."""
    found = run("squeue", "--noheader", "--states=all", "--format=%T", f"--jobs={job}")
    if found.returncode and "Invalid job id" not in found.stderr:
        return "PENDING"  # the controller does not answer: ask again later
    queued = found.stdout.split()
    if queued and queued[0] not in OVER:
        return queued[0]
    if state != "UNKNOWN" and run("scontrol", "requeue", job).returncode == 0:
        return "PENDING"
    return "FAILED"  # Snakemake submits it again, as often as `retries` allows


def run(command: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run one of SLURM's own commands."""
    return subprocess.run(
        [executor.real(command), *arguments],
        capture_output=True,
        text=True,
    )


if __name__ == "__main__":
    sys.exit(main(os.path.basename(sys.argv[0]), sys.argv[1:]))

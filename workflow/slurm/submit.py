#!/usr/bin/env python3
"""Be `sbatch` for Snakemake's SLURM executor: submit under a name that says which experiment.

Jobs of one name run one after the other: where a Snakemake was killed and a new one submits a run
whose old job still lives, the new job stays in the queue, without holding a GPU, until the old one
is over.
"""

import os
import subprocess
import sys

import executor


def main(arguments: list[str]) -> int:
    """Submit, note the job, print what sbatch printed."""
    name, comment = (executor.option(arguments, key) for key in ("--job-name", "--comment"))
    if not (name and comment):
        os.execv(executor.real("sbatch"), ["sbatch", *arguments])
    run = arguments[name]
    if not any(argument.startswith("--array") for argument in arguments):
        arguments[name] = executor.readable_name(run, arguments[comment], os.getcwd())
        arguments.insert(0, "--dependency=singleton")  # one in `slurm_extra` comes later and wins
    command = [executor.real("sbatch"), *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode == 0:
        executor.note(run, done.stdout.strip().split(";")[0])
    sys.stdout.write(done.stdout)
    return done.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""What a job is called, asks for, and is told to change."""

import os
import re
import zlib

from snakemake_interface_executor_plugins.jobs import JobExecutorInterface

from .refusals import Refusal


def job_name(job: JobExecutorInterface, folder: str, prefix: str = "") -> str:
    """Return a name that people can read: wildcards, rule, and a mark of the outputs.

    A number is preceded by the name of its wildcard: `vit_b_800.seed3.fine_tune.3f2a`. The mark
    distinguishes working folders and results folders of one user.
    """
    values = () if job.is_group() else job.wildcards.items()
    words = [f"{key}{value}" if str(value).isdigit() else str(value) for key, value in values]
    words = [re.sub(r"[^\w.+-]", "_", word) for word in [*words, job.name]]
    mark = zlib.crc32(os.fsencode(f"{folder}\0{min(map(str, job.output), default='')}")) & 0xFFFF
    return f"{prefix}{'.'.join(words)}.{mark:04x}"


def describe(job: JobExecutorInterface) -> str:
    """Return what messages call a job: `fine_tune vit_b_800 seed 3`."""
    values = () if job.is_group() else job.wildcards.items()
    words = [f"{key} {value}" if str(value).isdigit() else str(value) for key, value in values]
    return " ".join([job.name, *words])


def parse_submission(text: str) -> tuple[str | None, str | None]:
    """Return job number and cluster of what `sbatch --parsable` printed among a site's banners."""
    found = re.findall(r"^(\d+)(?:;(\S+))?\s*$", text, re.MULTILINE)
    return (found[-1][0], found[-1][1] or None) if found else (None, None)


def request(job: JobExecutorInterface) -> tuple:
    """Return what a job asks of SLURM, the same for jobs that differ in their files only."""
    own = ("tmpdir", "no_retry_file")
    asked = ((key, str(value)) for key, value in job.resources.items() if key not in own)
    return (job.threads, *sorted(asked))


def advice(job: JobExecutorInterface, refusal: Refusal) -> str:
    """Return one line: which job is refused for good, why, and which setting to change."""
    asked = {key: job.resources.get(key) for key in refusal.resources}
    given = ", ".join(f"{key}: {value}" for key, value in asked.items() if value)
    change = f"change {given}" if given else f"set one of {', '.join(refusal.resources)}"
    return f"{describe(job)}: SLURM refuses the job for good: {refusal.message}; {change}"


def cluster(job: JobExecutorInterface) -> str | None:
    """Return the cluster that a job asks for, None for the default one."""
    keys = ("cluster", "clusters", "slurm_cluster")
    return next((job.resources[key] for key in keys if job.resources.get(key)), None)

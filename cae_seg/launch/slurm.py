"""What SLURM is asked for from inside a job."""

import logging
import os
import subprocess
from pathlib import Path

from cae_seg.errors import UserError
from cae_seg.run.deadline import ask_slurm as ask
from cae_seg.run.paths import read_history

logger = logging.getLogger(__name__)

REQUEUE = "SNAKEMAKE_SLURM_REQUEUE"
"""The variable that our executor sets: it does not take a requeued job for a failed one."""


def requeue_if_advanced(metrics_log: Path) -> bool:
    """Put the SLURM job of this process back into the queue, if that is wanted and of use.

    It keeps its number and its log, and Snakemake, which sees it waiting, counts no failure: a run
    may meet its time limit as often as it needs to.

    It is of no use to a job that SLURM is taking away (`scancel`, pre-emption, the time limit
    itself), nor if this attempt did not advance the run, which would wait and stop for ever.

    Args:
        metrics_log: of the run, whose last attempt has just stopped.

    Returns:
        Whether SLURM has taken the job back.
    """
    return _advanced(metrics_log) and requeue_job()


def requeue_job() -> bool:
    """Put the SLURM job of this process back into the queue, if our executor started it.

    Returns:
        Whether SLURM has taken the job back.
    """
    job = os.environ.get("SLURM_JOB_ID")
    if not (job and os.environ.get(REQUEUE)):
        return False
    try:
        if ask("squeue", "--noheader", "--format=%T", f"--jobs={job}").strip() != "RUNNING":
            return False
        ask("scontrol", "requeue", job)
    except (OSError, subprocess.SubprocessError) as error:
        reason = (getattr(error, "stderr", None) or str(error)).strip()
        logger.warning("SLURM does not requeue job %s (%s); Snakemake may retry it", job, reason)
        return False
    logger.info("SLURM job %s returns to the queue and will resume from here", job)
    return True


def allocated_nodes() -> int:
    """Return the number of nodes of the SLURM job of this process; 1 outside of SLURM.

    The variables tell of the job step, which holds one task on one of them.

    Raises:
        UserError: SLURM does not say.
    """
    job = os.environ.get("SLURM_JOB_ID")
    if not job:
        return 1
    try:
        return int(ask("squeue", "--noheader", "--format=%D", f"--jobs={job}"))
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise UserError(f"SLURM job {job}: squeue does not say how many nodes it has") from error


def _advanced(metrics_log: Path) -> bool:
    """Say whether the last attempt of a run stopped at a later iteration than it began at."""
    events = read_history(metrics_log).events
    begins = [event["iteration"] for event in events if event["event"] in ("start", "resume")]
    stops = [event["iteration"] for event in events if event["event"] == "stop"]
    return bool(begins and stops) and stops[-1] > begins[-1]

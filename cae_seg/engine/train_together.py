"""Train several runs over one frozen backbone in one process, each as it would train alone."""

import contextlib
import logging
from collections.abc import Sequence

import torch
from greenlet import getcurrent
from mmengine.dist import is_main_process

from cae_seg.engine.job import DONE, STOPPED, JointJob, TrainJob
from cae_seg.engine.train import train
from cae_seg.engine.turns import Turn, take_turns
from cae_seg.errors import UserError
from cae_seg.files import atomic_write_json, full_disk_is_one_line
from cae_seg.progress import run_label
from cae_seg.run.deadline import Interrupted, StopSignal
from cae_seg.run.failure import recording_failure
from cae_seg.run.logs import separate_log
from cae_seg.run.outputs import report_of
from cae_seg.run.work_dir import WorkDir

logger = logging.getLogger(__name__)


def train_together(job: JointJob, device: torch.device, stop: StopSignal) -> int:
    """Train until all runs are done, or all are stopped cleanly.

    A run that fails by a mistake of the user's (a learning rate that diverges, say) notes that in
    its work dir; the others continue.

    Args:
        job: what to train.
        device: where this process computes.
        stop: set when a signal asks to stop.

    Returns:
        DONE or STOPPED.

    Raises:
        UserError: runs failed by mistakes, all of them if `job.keep_going`.
    """

    def task(run: TrainJob):
        return lambda turn: _train(run, device, stop, turn)

    outcomes = take_turns([task(run) for run in job.runs])
    failed = []
    for run, outcome in zip(job.runs, outcomes, strict=True):
        if isinstance(outcome, UserError):
            failed.append(run_label(run.name or run.config.stem, run.seed))
            logger.error("%s: error: %s", failed[-1], outcome)
    if STOPPED in outcomes:
        return STOPPED
    if job.report is not None and is_main_process():
        _write_report(job, outcomes)
    if failed and not (job.keep_going and len(failed) < len(outcomes)):
        raise UserError(f"{len(failed)} of {len(outcomes)} runs failed: {', '.join(failed)}")
    return DONE


def _write_report(job: JointJob, outcomes: Sequence[int | UserError]) -> None:
    runs = []
    for run, outcome in zip(job.runs, outcomes, strict=True):
        work = WorkDir(run.work_dir)
        identity = (work.metadata() or {}).get("identity")
        error = str(outcome) if isinstance(outcome, UserError) else None
        runs.append(report_of(work, identity, error))
    atomic_write_json(job.report, {"runs": runs})


def _train(run: TrainJob, device: torch.device, stop: StopSignal, turn: Turn) -> int:
    task = getcurrent()
    with (
        separate_log(lambda: getcurrent() is task) as log,
        recording_failure(run.work_dir) if is_main_process() else contextlib.nullcontext(),
        full_disk_is_one_line(run.work_dir),
    ):
        try:
            return train(run, device, stop, log, turn)
        except Interrupted:
            return STOPPED

"""One training run, from a job to final weights, as one of its ranks sees it.

What a run leaves in its work dir is resumable at any moment: the same command continues where the
last one was stopped, killed or lost, and returns at once where the run is over.
"""

import logging
import time
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import barrier, is_main_process
from torch import nn

from cae_seg.engine.build import build_model
from cae_seg.engine.hooks.pictures import VisualizationHook
from cae_seg.engine.hooks.progress import ProgressHook
from cae_seg.engine.job import DONE, STOPPED, TrainJob
from cae_seg.engine.metadata import export_outputs, write_end, write_start
from cae_seg.engine.ranks import run_on_main
from cae_seg.engine.resolve import ResolvedRun, resolve_run
from cae_seg.engine.runner import ExactRunner
from cae_seg.engine.session import TrainingSession
from cae_seg.engine.turns import Turn
from cae_seg.errors import UserError
from cae_seg.progress import run_label
from cae_seg.run import provenance
from cae_seg.run.checkpoints import Checkpoints
from cae_seg.run.deadline import (
    Interrupted,
    StopSignal,
    TimeBudget,
    deadline_of,
    guess_save_seconds,
)
from cae_seg.run.logs import LogFile
from cae_seg.run.metrics_log import MetricsLogger
from cae_seg.run.paths import read_history
from cae_seg.run.work_dir import LOCK_SECONDS, WorkDir

logger = logging.getLogger(__name__)


def train(job: TrainJob, device: torch.device, stop: StopSignal, log: LogFile, turn: Turn) -> int:
    """Train until done or stopped cleanly.

    Args:
        job: what to train.
        device: where this process computes.
        stop: set when a signal asks to stop.
        log: opened in the work dir once that is ours.
        turn: the run's place among those that train together.

    Returns:
        DONE or STOPPED.

    Raises:
        UserError: a mistake of the user's; nothing was written then.
    """
    began = time.time()
    run = resolve_run(job, device)
    work = WorkDir(job.work_dir)
    fresh = not run_on_main(lambda: work.holds(run.identity))
    model = build_model(run.built, job.seed, start=fresh)
    try:
        run_on_main(lambda: _enter(work, run, log))
        if run_on_main(lambda: _finished_before(work, run)):
            return DONE
        _restore_threads(work, device)
        metrics = MetricsLogger(work.metrics_log if is_main_process() else None)
        checkpoints = Checkpoints(work.checkpoints, metrics)
        newest = run_on_main(lambda: _newest(checkpoints))
        if newest is None and not fresh:  # no state in the work dir could be read
            model = build_model(run.built, job.seed, start=True)
        session = _session(run, device, stop, metrics, checkpoints, newest)
        session.turn, session.budget = turn, _budget(job, model, began, turn.runs)
        return _run(run, work, session, model, began)
    finally:
        work.leave()


def _enter(work: WorkDir, run: ResolvedRun, log: LogFile) -> None:
    work.enter(run.identity, LOCK_SECONDS if run.job.lock_wait is None else run.job.lock_wait)
    log.open(work.log)


def _finished_before(work: WorkDir, run: ResolvedRun) -> bool:
    """Tell whether the run is over; the files that it declares are then written again."""
    if (summary := work.summary(run.identity)) is None:
        return False
    export_outputs(run, work, summary)
    Checkpoints(work.checkpoints, MetricsLogger(None)).remove_all()
    logger.info("%s: finished before; nothing to do", work.path)
    return True


def _restore_threads(work: WorkDir, device: torch.device) -> None:
    """Use as many threads as before: sums are cut by thread, and would round differently."""
    before = run_on_main(work.metadata) or {}
    if device.type == "cpu" and before.get("threads"):
        torch.set_num_threads(before["threads"])


def _newest(checkpoints: Checkpoints) -> Path | None:
    checkpoints.sweep()
    return checkpoints.newest()


def _session(
    run: ResolvedRun,
    device: torch.device,
    stop: StopSignal,
    metrics: MetricsLogger,
    checkpoints: Checkpoints,
    newest: Path | None,
) -> TrainingSession:
    hooks = run.config.get("default_hooks") or {}
    return TrainingSession(
        device=device,
        seed=run.job.seed,
        stop=stop,
        workers=run.job.workers,
        deterministic=run.job.deterministic,
        precision=run.precision,
        evaluation_precision=run.config.get("evaluation_precision", "fp32"),
        split=run.split,
        metrics=metrics,
        checkpoints=checkpoints,
        resume_from=newest,
        identity=run.identity,
        save_interval=(hooks.get("checkpoint") or {}).get("interval", 8000),
        log_interval=(hooks.get("logger") or {}).get("interval", 50),
    )


def _run(
    run: ResolvedRun, work: WorkDir, session: TrainingSession, model: nn.Module, began: float
) -> int:
    """Train from the newest state on; write the end of the run if it is reached."""
    runner = ExactRunner.of(run.built, session, model, work.path)
    evaluations = run_on_main(lambda: read_history(work.metrics_log).evaluations)
    runner.evaluated = _evaluations_to_keep(evaluations)
    runner.register_hook(VisualizationHook(work.visualizations), priority="LOW")
    if is_main_process():
        _note_start(run, work, session, model, began)
    scored = [(i, line["mIoU"]) for i, line in evaluations.items() if "mIoU" in line]
    runner.register_hook(ProgressHook(_label(run), scored[-1] if scored else None))
    if not _reaches_end(runner, run):
        _note_stop(_label(run), session, runner)
        return STOPPED
    state = runner.weights()
    if is_main_process():
        write_end(run, work, session.metrics, state)
        session.checkpoints.remove_all()
        logger.info("%s: finished; weights in %s", _label(run), work.weights)
    barrier()
    return DONE


def _label(run: ResolvedRun) -> str:
    return run_label(run.job.name or run.job.config.stem, run.job.seed)


def _evaluations_to_keep(evaluations: dict[int, dict[str, Any]]) -> set[int]:
    """Return the iterations whose evaluation need not be repeated: no hook has learnt from it."""
    return {i for i, line in evaluations.items() if not line.get("hooks_changed", False)}


def _reaches_end(runner: ExactRunner, run: ResolvedRun) -> bool:
    try:
        runner.train()
        return True
    except Interrupted:
        return False
    except torch.OutOfMemoryError as error:
        advice = "use a larger GPU"
        if run.split.micro_batch > 1:
            advice = f"pass --images-per-gpu {run.split.micro_batch // 2}"
        raise UserError(
            f"{run.split.micro_batch} images at once do not fit into the GPU's memory; {advice}"
        ) from error


def _budget(job: TrainJob, model: nn.Module, began: float, runs: int) -> TimeBudget:
    parameters = sum(parameter.numel() for parameter in model.parameters())
    deadline = run_on_main(lambda: deadline_of(job.time_budget, began))
    return TimeBudget(deadline, runs * guess_save_seconds(parameters))


def _note_start(
    run: ResolvedRun, work: WorkDir, session: TrainingSession, model: nn.Module, began: float
) -> None:
    """Write, and tell, what is going to be done and with what."""
    done, split = session.iterations_done, run.split
    metadata = write_start(run, work, model, session.device, began)
    session.metrics.event(
        "resume" if metadata["attempts"] > 1 else "start",
        iteration=done,
        time=began,
        batch=metadata["batch"],
        runs=session.turn.runs,
        device=metadata["device"],
        slurm_job_id=provenance.slurm_job(),
    )
    logger.info(
        "%s: %s, %s, %s: %d images an iteration = %d rank(s) x %d%s",
        _label(run),
        f"resuming from iteration {done}" if done else "training from the start",
        metadata["device"]["name"],
        run.precision,
        split.global_batch,
        split.ranks,
        split.batch_per_rank,
        f" in {split.accumulation} parts" if split.accumulation > 1 else "",
    )


def _note_stop(label: str, session: TrainingSession, runner: ExactRunner) -> None:
    reason = session.stop.name or "time budget"
    session.metrics.event("stop", iteration=runner.iter, reason=reason)
    logger.info(
        "%s: stopped cleanly (%s) at iteration %d of %d; rerun the same command to resume",
        label,
        reason,
        runner.iter,
        runner.max_iters,
    )

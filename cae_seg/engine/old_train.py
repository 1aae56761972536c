"""One training run, from a job to final weights, as one of its ranks sees it.

What a run leaves in its work dir is resumable at any moment: the same command goes on where the
last one was stopped, killed or lost, and returns at once where the run is over.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.model import MMDistributedDataParallel
from torch import nn

from cae_seg.engine.job import DONE, STOPPED, TrainJob
from cae_seg.engine.loop import Loop, Pace, Parts, Watch, restore
from cae_seg.engine.old_evaluation import Evaluation, Wishes
from cae_seg.engine.old_resolve import Plan, make_plan
from cae_seg.engine.old_runner import (
    BatchSplit,
    build_model,
    build_optimiser,
    build_schedulers,
    build_train_loader,
)
from cae_seg.engine.old_summary import finish, publish, write_facts
from cae_seg.engine.ranks import Ranks
from cae_seg.errors import UserError
from cae_seg.progress import Progress, progress
from cae_seg.run import provenance
from cae_seg.run.checkpoints import Checkpoints, load_state
from cae_seg.run.deadline import (
    Budget,
    Stopped,
    StopRequest,
    deadline_of,
    guess_save_seconds,
)
from cae_seg.run.logs import LogFile, Voice
from cae_seg.run.metrics_log import RecordWriter
from cae_seg.run.paths import read_record
from cae_seg.run.work_dir import LOCK_SECONDS, WorkDir

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Attempt:
    """One try at a run: what, where, by whom, since when."""

    plan: Plan
    work: WorkDir
    ranks: Ranks
    request: StopRequest
    record: RecordWriter
    checkpoints: Checkpoints
    began: float


def train(job: TrainJob, ranks: Ranks, request: StopRequest, log: LogFile) -> int:
    """Train until done or stopped in good order.

    Args:
        job: what to train.
        ranks: this process among those of the run.
        request: set when a signal asks to stop.
        log: opened in the work dir once that is ours.

    Returns:
        DONE or STOPPED.

    Raises:
        UserError: a mistake of the user's; nothing was written then.
    """
    began = time.time()
    plan = make_plan(job, ranks)
    work = WorkDir(job.work_dir)
    fresh = not ranks.ask_first(lambda: work.holds(plan.identity))
    model = build_model(plan.config, job.seed, start=fresh)
    try:
        ranks.ask_first(lambda: _enter(work, plan, log))
        if ranks.ask_first(lambda: _finished_before(work, plan)):
            return DONE
        record = RecordWriter(work.record if ranks.first else None)
        checkpoints = Checkpoints(work.checkpoints, record)
        attempt = Attempt(plan, work, ranks, request, record, checkpoints, began)
        return _run(attempt, *_set_up(attempt, model, fresh=fresh))
    finally:
        work.leave()


def _enter(work: WorkDir, plan: Plan, log: LogFile) -> None:
    work.enter(plan.identity, LOCK_SECONDS if plan.job.lock_wait is None else plan.job.lock_wait)
    log.open(work.log)


def _finished_before(work: WorkDir, plan: Plan) -> bool:
    """Say whether the run is over; what it declares is then written again."""
    if (finals := work.finals(plan.identity)) is None:
        return False
    publish(plan, work, finals)
    Checkpoints(work.checkpoints, RecordWriter(None)).remove_all()
    logger.info("%s: finished before; nothing to do", work.path)
    return True


def _set_up(attempt: Attempt, model: nn.Module, *, fresh: bool) -> tuple[Parts, int]:
    """Return the parts of the run in the state that the newest checkpoint holds, and its iteration.

    Args:
        attempt: this try.
        model: the segmentor.
        fresh: whether it has its start values.
    """
    plan, ranks = attempt.plan, attempt.ranks
    _prepare_torch(plan, ranks, ranks.ask_first(attempt.work.facts) or {})
    newest = ranks.ask_first(lambda: _newest(attempt.checkpoints))
    if newest is None and not fresh:  # no state in the work dir could be read
        model = build_model(plan.config, plan.job.seed, start=True)
    parts = _build_parts(plan, ranks, model)
    done = 0 if newest is None else restore(load_state(newest), parts)
    ranks.wait()  # nobody may replace a checkpoint that another rank still reads
    loader = build_train_loader(plan.config, plan.split, ranks, plan.job.workers, done)
    parts.batches = iter(loader)
    return parts, done


def _run(attempt: Attempt, parts: Parts, done: int) -> int:
    """Train on from `done` iterations; write the finals if the end is reached."""
    plan, ranks = attempt.plan, attempt.ranks
    if ranks.first:
        _note_start(attempt, parts.model, done)
    budget = _budget(attempt, parts.model)
    with _progress(plan, ranks, done) as bar:
        watch = Watch(
            record=attempt.record,
            checkpoints=attempt.checkpoints,
            budget=budget,
            request=attempt.request,
            progress=bar,
            evaluate=_evaluator(attempt, budget, parts.model),
            evaluated=ranks.tell(set(read_record(attempt.work.record).evaluations)),
        )
        loop = Loop(
            parts,
            watch,
            ranks=ranks,
            split=plan.split,
            pace=_pace(plan.config),
            seed=plan.job.seed,
            identity=plan.identity,
            done=done,
        )
        reached = _reaches_end(loop, plan.split)
    if not reached:
        _note_stop(attempt, loop.done)
        return STOPPED
    if ranks.first:
        finish(plan, attempt.work, attempt.record, parts.model)
        attempt.checkpoints.remove_all()
        logger.info("finished; weights in %s", attempt.work.weights)
    ranks.wait()
    return DONE


def _reaches_end(loop: Loop, split: BatchSplit) -> bool:
    try:
        return loop.run()
    except Stopped:
        return False
    except torch.OutOfMemoryError as error:
        advice = "use a larger GPU"
        if split.micro > 1:
            advice = f"pass --images-per-gpu {split.micro // 2}"
        raise UserError(
            f"{split.micro} images at once do not fit into the GPU's memory; {advice}"
        ) from error


def _evaluator(
    attempt: Attempt, budget: Budget, model: nn.Module
) -> Callable[[int], dict[str, float]]:
    """Return what measures the model after an iteration."""
    plan, request = attempt.plan, attempt.request
    evaluation = Evaluation(
        plan.config,
        attempt.ranks,
        lambda: request.reason is not None or budget.past(),
        workers=plan.job.workers,
    )

    def measure(iteration: int) -> dict[str, float]:
        wishes = Wishes(panels=attempt.work.panels / f"iter_{iteration}")
        scores = evaluation.run(model, wishes).scores
        return {name: scores[name] for name in ("mIoU", "mAcc", "aAcc")}

    return measure


def _newest(checkpoints: Checkpoints) -> Path | None:
    checkpoints.sweep()
    return checkpoints.newest()


def _build_parts(plan: Plan, ranks: Ranks, model: nn.Module) -> Parts:
    model.to(ranks.device)
    wrapped = model
    if ranks.world > 1 and ranks.device.type == "cuda":
        wrapped = MMDistributedDataParallel(
            model, device_ids=[ranks.local], broadcast_buffers=False
        )
    elif ranks.world > 1:
        # DDP refuses synchronised batch norm on the CPU, and regroups what it adds after the
        # first iteration: a resumed run would round otherwise than an undisturbed one.
        ranks.share([*model.parameters(), *model.buffers()])
    optimiser = build_optimiser(wrapped, plan.config, plan.precision, plan.split)
    return Parts(model, wrapped, optimiser, build_schedulers(optimiser, plan.config), iter(()))


def _prepare_torch(plan: Plan, ranks: Ranks, before: dict[str, Any]) -> None:
    """Choose between the fastest kernels and the same ones every time."""
    if ranks.device.type == "cpu" and before.get("threads"):
        # Sums are cut by thread: on other cores than before they would round otherwise.
        torch.set_num_threads(before["threads"])
    torch.use_deterministic_algorithms(plan.job.deterministic)
    torch.backends.cudnn.deterministic = plan.job.deterministic
    torch.backends.cudnn.benchmark = not plan.job.deterministic and ranks.device.type == "cuda"


def _pace(config: Config) -> Pace:
    hooks = config.get("default_hooks", {})
    return Pace(
        iterations=config.train_cfg.max_iters,
        save=hooks.get("checkpoint", {}).get("interval", 8000),
        evaluate=config.train_cfg.get("val_interval", 16000),
        log=hooks.get("logger", {}).get("interval", 50),
    )


def _budget(attempt: Attempt, model: nn.Module) -> Budget:
    parameters = sum(parameter.numel() for parameter in model.parameters())
    minutes, began = attempt.plan.job.time_budget, attempt.began
    deadline = attempt.ranks.ask_first(lambda: deadline_of(minutes, began))
    return Budget(deadline, guess_save_seconds(parameters))


def _progress(plan: Plan, ranks: Ranks, done: int) -> Progress:
    name = plan.job.name or plan.job.config.stem
    total = plan.config.train_cfg.max_iters
    return progress(total, f"train {name}", "iterations", initial=done, stream=Voice(ranks.first))


def _note_start(attempt: Attempt, model: nn.Module, done: int) -> None:
    """Write down, and say, what is going to be done and with what."""
    plan, ranks = attempt.plan, attempt.ranks
    facts = write_facts(plan, attempt.work, model, ranks, attempt.began)
    attempt.record.event(
        "resume" if facts["attempts"] > 1 else "start",
        iteration=done,
        time=attempt.began,
        batch=facts["batch"],
        device=facts["device"],
        slurm_job_id=provenance.slurm_job(),
    )
    split = plan.split
    logger.info(
        "%s, %s, %s: %d images an iteration = %d rank(s) x %d%s",
        f"going on from iteration {done}" if done else "training from the start",
        facts["device"]["name"],
        plan.precision,
        split.total,
        split.ranks,
        split.per_rank,
        f" in {split.accumulation} parts" if split.accumulation > 1 else "",
    )


def _note_stop(attempt: Attempt, done: int) -> None:
    reason = attempt.request.reason or "time budget"
    attempt.record.event("stop", iteration=done, reason=reason)
    logger.info(
        "stopped in good order (%s) after iteration %d of %d; the same command goes on",
        reason,
        done,
        attempt.plan.config.train_cfg.max_iters,
    )

"""One training run, from a job to final weights, as one of its ranks sees it.

What a run leaves in its work dir is resumable at any moment: the same command goes on where the
last one was stopped, killed or lost, and returns at once where the run is over.
"""

import logging
import os
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.model import MMDistributedDataParallel
from torch import nn

from cae_seg.engine import provenance
from cae_seg.engine.budget import Budget, StopRequest, deadline_of, guess_save_seconds
from cae_seg.engine.checkpointing import Checkpoints, load_state, to_cpu
from cae_seg.engine.evaluate import Evaluation, Wishes
from cae_seg.engine.inspect import known_sha256
from cae_seg.engine.jobs import DONE, STOPPED, TrainJob
from cae_seg.engine.logs import LogFile, Voice
from cae_seg.engine.loop import Loop, Pace, Parts, Watch, restore
from cae_seg.engine.ranks import Ranks
from cae_seg.engine.record import RecordWriter, working_seconds
from cae_seg.engine.runner import (
    BatchSplit,
    apply_job,
    build_model,
    build_optimiser,
    build_schedulers,
    build_train_loader,
    choose_precision,
    config_facts,
    config_text,
    identity_of,
    load_config,
    pretrained_of,
    split_batch,
)
from cae_seg.engine.workdir import WorkDir
from cae_seg.errors import UserError
from cae_seg.files import atomic_write_json, atomic_write_text, atomic_writer, sha256_file
from cae_seg.progress import Progress, progress
from cae_seg.run_folder import read_record

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """What a job comes to on this machine."""

    job: TrainJob
    config: Config
    split: BatchSplit
    precision: str
    identity: str
    inputs: dict[str, Any]  # facts about checkpoint and data


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
        if finals := ranks.ask_first(lambda: work.finals(plan.identity)):
            if ranks.first:
                _publish(work, plan, finals)
                logger.info("%s: finished before; nothing to do", job.work_dir)
            return DONE
        return _run(plan, work, ranks, request, model, fresh=fresh, began=began)
    finally:
        work.leave()


def make_plan(job: TrainJob, ranks: Ranks) -> Plan:
    """Resolve config, batch, precision and identity; the files are hashed once."""
    config = apply_job(load_config(job.config, job.cfg_options), job)
    precision = choose_precision(config.precision, ranks.device.type)
    split = split_batch(config.total_batch_size, ranks.world, job.images_per_gpu)
    inputs = ranks.ask_first(lambda: _inputs(config, job))
    checkpoint, data = inputs["checkpoint"], inputs["data"]
    identity = identity_of(
        config, job.seed, precision, checkpoint and checkpoint["sha256"], data["fingerprint"]
    )
    return Plan(job, config, split, precision, identity, inputs)


def _inputs(config: Config, job: TrainJob) -> dict[str, Any]:
    checkpoint = None
    if (source := pretrained_of(config)) is not None:
        checkpoint = {"path": str(source), "sha256": _sha256(source, job.pretrained)}
    if job.data is None:
        root = config.train_dataloader.dataset.dataset.data_root
        if not Path(root).is_dir():
            raise UserError(f"{root}: no data here; run `cae-seg prepare data` or pass --data")
        return {"checkpoint": checkpoint, "data": {"fingerprint": None, "root": str(root)}}
    from cae_seg.data.manifest import load_manifest

    manifest = load_manifest(job.data)
    data = {
        "fingerprint": manifest.fingerprint,
        "root": str(manifest.root),
        "images": dict(manifest.counts),
    }
    return {"checkpoint": checkpoint, "data": data}


def _sha256(source: Path, given: Path | None) -> str:
    """Hash the checkpoint, unless its inspection has."""
    if given is not None and given.suffix == ".json":
        return known_sha256(given)[1]
    return sha256_file(source)


def _enter(work: WorkDir, plan: Plan, log: LogFile) -> None:
    work.enter(plan.identity, plan.job.lock_wait)
    log.open(work.log)


def _run(
    plan: Plan,
    work: WorkDir,
    ranks: Ranks,
    request: StopRequest,
    model: nn.Module,
    *,
    fresh: bool,
    began: float,
) -> int:
    """Set the parts up, train, and write the finals."""
    record = RecordWriter(work.record if ranks.first else None)
    checkpoints = Checkpoints(work.checkpoints, record)
    _prepare_torch(plan, ranks, ranks.ask_first(work.facts) or {})
    found = ranks.ask_first(lambda: _newest(checkpoints))
    if found is None and not fresh:  # no state in the work dir could be read
        model = build_model(plan.config, plan.job.seed, start=True)
    parts = _build_parts(plan, ranks, model)
    done = 0
    if found is not None:
        done = restore(load_state(found), parts)
    ranks.wait()  # nobody may replace a checkpoint that another rank still reads
    if ranks.first:
        _note_start(plan, work, record, model, ranks, done, began)
    loader = build_train_loader(plan.config, plan.split, ranks, plan.job.workers, done)
    budget = _budget(plan, model, ranks, began)
    evaluation = Evaluation(
        plan.config, ranks, lambda: bool(request.reason) or budget.past(), workers=plan.job.workers
    )

    def measure(iteration: int) -> dict[str, float]:
        wishes = Wishes(panels=work.panels / f"iter_{iteration}")
        return {
            key: value
            for key, value in evaluation.run(model, wishes).scores.items()
            if key in ("mIoU", "mAcc", "aAcc")
        }

    with _progress(plan, ranks, done) as bar:
        parts.batches = iter(loader)
        watch = Watch(
            record,
            checkpoints,
            budget,
            request,
            bar,
            measure,
            ranks.tell(set(read_record(work.record).evaluations)),
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
        try:
            reached = loop.run()
        except torch.OutOfMemoryError as error:
            raise UserError(_too_large(plan.split)) from error
    if not reached:
        record.event("stop", iteration=loop.done, reason=request.reason or "time budget")
        logger.info(
            "stopped in good order after iteration %d of %d; the same command goes on",
            loop.done,
            plan.config.train_cfg.max_iters,
        )
        return STOPPED
    if ranks.first:
        _finish(plan, work, record, checkpoints, model)
    ranks.wait()
    return DONE


def _too_large(split: BatchSplit) -> str:
    advice = f"pass --images-per-gpu {split.micro // 2}" if split.micro > 1 else "use a larger GPU"
    return f"{split.micro} images at once do not fit into the GPU's memory; {advice}"


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


def _budget(plan: Plan, model: nn.Module, ranks: Ranks, began: float) -> Budget:
    parameters = sum(parameter.numel() for parameter in model.parameters())
    deadline = ranks.ask_first(lambda: deadline_of(plan.job.time_budget, began))
    return Budget(deadline, guess_save_seconds(parameters))


def _progress(plan: Plan, ranks: Ranks, done: int) -> Progress:
    name = plan.job.name or plan.job.config.stem
    total = plan.config.train_cfg.max_iters
    return progress(total, f"train {name}", "iterations", initial=done, stream=Voice(ranks.first))


def _note_start(
    plan: Plan,
    work: WorkDir,
    record: RecordWriter,
    model: nn.Module,
    ranks: Ranks,
    done: int,
    began: float,
) -> None:
    """Write down, and say, what is going to be done and with what."""
    facts = _facts(plan, work.facts() or {}, model, ranks, began)
    work.write_facts(facts)
    atomic_write_text(work.config, config_text(plan.config))
    record.event(
        "resume" if facts["attempts"] > 1 else "start",
        iteration=done,
        time=began,
        batch=facts["batch"],
        device=facts["device"],
        slurm_job_id=provenance.slurm_job(),
    )
    split = plan.split
    parts = f" in {split.accumulation} parts" if split.accumulation > 1 else ""
    logger.info(
        "%s, %s, %s: %d images an iteration = %d rank(s) x %d%s",
        f"going on from iteration {done}" if done else "training from the start",
        facts["device"]["name"],
        plan.precision,
        split.total,
        split.ranks,
        split.per_rank,
        parts,
    )


def _facts(
    plan: Plan, before: dict[str, Any], model: nn.Module, ranks: Ranks, began: float
) -> dict[str, Any]:
    checkpoint = plan.inputs["checkpoint"]
    report = getattr(model.backbone, "pretrained_report", None)
    if checkpoint is not None:
        loaded = report.as_dict() if report is not None else before.get("checkpoint") or {}
        checkpoint = {**loaded, **checkpoint}
    job_id = provenance.slurm_job()
    jobs = before.get("slurm_job_ids", [])
    return {
        "schema": 1,
        "experiment": plan.job.name,
        "seed": plan.job.seed,
        "identity": plan.identity,
        "config": plan.job.config.stem,
        **config_facts(plan.config),
        "precision": plan.precision,
        "deterministic": plan.job.deterministic,
        "device": provenance.device_facts(ranks.device.type, ranks.world),
        "threads": torch.get_num_threads(),
        "batch": plan.split.as_dict(),
        "fast_paths": _fast_paths(model),
        "checkpoint": checkpoint,
        "data": plan.inputs["data"],
        "code": before.get("code") or provenance.code(),
        "versions": provenance.versions(),
        "slurm_job_ids": jobs if job_id is None or job_id in jobs else [*jobs, job_id],
        "attempts": before.get("attempts", 0) + 1,
        "started": before.get("started") or _iso(began),
    }


def _fast_paths(model: nn.Module) -> list[str]:
    return list(getattr(model, "active_fast_paths", ()))


def _finish(
    plan: Plan, work: WorkDir, record: RecordWriter, checkpoints: Checkpoints, model: nn.Module
) -> None:
    """Write weights and record of the finished run, then give up the resumable states."""
    _write_weights(plan, work.weights, model)
    record.event("finish", iteration=plan.config.train_cfg.max_iters)
    history = read_record(work.record)
    seconds = working_seconds(history)
    facts = work.facts()
    gpus = facts["device"]["count"] if facts["device"]["type"] == "cuda" else 0
    finals = {
        **facts,
        "ended": _iso(time.time()),
        "seconds": seconds,
        "gpu_hours": gpus * seconds / 3600,
        "weights": {"path": str(work.weights), "sha256": sha256_file(work.weights)},
        "evaluations": [
            {"iteration": iteration, **{key: line[key] for key in ("mIoU", "mAcc", "aAcc")}}
            for iteration, line in history.evaluations.items()
        ],
    }
    work.write_finals(finals)
    _publish(work, plan, finals)
    checkpoints.remove_all()
    logger.info("finished; weights in %s", work.weights)


def _write_weights(plan: Plan, path: Path, model: nn.Module) -> None:
    dataset = model.dataset_meta if hasattr(model, "dataset_meta") else {}
    meta = {
        "iteration": plan.config.train_cfg.max_iters,
        "identity": plan.identity,
        "seed": plan.job.seed,
        "cfg": config_text(plan.config),
        "dataset_meta": dataset,
    }
    try:
        with atomic_writer(path) as stream:
            torch.save({"meta": meta, "state_dict": to_cpu(dict(model.state_dict()))}, stream)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"{path}: the final weights cannot be written ({error}); make room and "
            "run the same command again"
        ) from error


def _publish(work: WorkDir, plan: Plan, finals: dict[str, Any]) -> None:
    """Write the declared files, the record last."""
    run_file = plan.job.run_file
    config = run_file.parent / "config.py"
    if config.absolute() != work.config.absolute():
        atomic_write_text(config, work.config.read_text())
    weights = os.path.relpath(work.weights, run_file.parent)
    atomic_write_json(run_file, {**finals, "weights": {**finals["weights"], "path": weights}})


def _iso(moment: float) -> str:
    return datetime.fromtimestamp(moment).astimezone().isoformat(timespec="seconds")

"""What is written down about a run: facts when it starts, weights and record when it is over."""

import os
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from torch import nn

from cae_seg.engine.old_resolve import Plan
from cae_seg.engine.old_runner import config_facts, config_text
from cae_seg.engine.ranks import Ranks
from cae_seg.errors import UserError
from cae_seg.files import atomic_write_json, atomic_write_text, atomic_writer, sha256_file
from cae_seg.run import provenance
from cae_seg.run.checkpoints import to_cpu
from cae_seg.run.metrics_log import RecordWriter, working_seconds
from cae_seg.run.paths import read_record
from cae_seg.run.work_dir import WorkDir


def write_facts(
    plan: Plan, work: WorkDir, model: nn.Module, ranks: Ranks, began: float
) -> dict[str, Any]:
    """Write down what is about to be trained, with what; return it."""
    facts = _facts(plan, work.facts() or {}, model, ranks, began)
    work.write_facts(facts)
    atomic_write_text(work.config, config_text(plan.config))
    return facts


def finish(plan: Plan, work: WorkDir, record: RecordWriter, model: nn.Module) -> None:
    """Write weights and record of a run that is over.

    Raises:
        UserError: there is no room for them.
    """
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
    publish(plan, work, finals)


def publish(plan: Plan, work: WorkDir, finals: dict[str, Any]) -> None:
    """Write the declared files, the record last."""
    run_file = plan.job.run_file
    config = run_file.parent / "config.py"
    if config.absolute() != work.config.absolute():
        atomic_write_text(config, work.config.read_text())
    weights = os.path.relpath(work.weights, run_file.parent)
    atomic_write_json(run_file, {**finals, "weights": {**finals["weights"], "path": weights}})


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
        "fast_paths": _fast_paths(plan.config, model),
        "checkpoint": checkpoint,
        "data": plan.inputs["data"],
        "code": before.get("code") or provenance.code(),
        "versions": provenance.versions(),
        "slurm_job_ids": jobs if job_id is None or job_id in jobs else [*jobs, job_id],
        "attempts": before.get("attempts", 0) + 1,
        "started": before.get("started") or _iso(began),
    }


def _fast_paths(config: Config, model: nn.Module) -> list[str]:
    """Name the fast paths that are on, in the model and around it."""
    dataset = config.train_dataloader.dataset
    first = dataset.get("dataset", dataset).pipeline[0]
    around = {
        "train_transform": first.type == "TrainTransform" and first.get("fast", True),
        "batch_preprocessor": getattr(model.data_preprocessor, "fast", False),
        "fused_optimizer": config.optim_wrapper.optimizer.get("fused", False),
    }
    return [*getattr(model, "active_fast_paths", ()), *(name for name, on in around.items() if on)]


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


def _iso(moment: float) -> str:
    return datetime.fromtimestamp(moment).astimezone().isoformat(timespec="seconds")

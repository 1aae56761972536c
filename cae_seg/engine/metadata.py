"""Metadata of a training run: written when it starts, and completed when it is over."""

import logging
import time
from datetime import datetime
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dist import get_world_size
from torch import nn

from cae_seg.engine.config_text import config_text
from cae_seg.engine.resolve import ResolvedRun
from cae_seg.errors import UserError
from cae_seg.files import atomic_write_text, atomic_writer, sha256_file
from cae_seg.run import provenance
from cae_seg.run.checkpoints import to_cpu
from cae_seg.run.metrics_log import MetricsLogger, working_seconds
from cae_seg.run.outputs import write_outputs
from cae_seg.run.paths import read_history
from cae_seg.run.work_dir import SCHEMA, WorkDir

logger = logging.getLogger(__name__)

_SCORES = ("mIoU", "mAcc", "aAcc")


def write_start(
    run: ResolvedRun, work: WorkDir, model: nn.Module, device: torch.device, began: float
) -> dict[str, Any]:
    """Write what is about to be trained, with what; return it."""
    metadata = _metadata(run, work.metadata() or {}, model, device, began)
    work.write_metadata(metadata)
    try:
        atomic_write_text(work.config, config_text(run.config))
    except (OSError, UserError) as error:
        logger.warning("%s: cannot be written (%s); training continues", work.config, error)
    return metadata


def write_end(
    run: ResolvedRun, work: WorkDir, metrics: MetricsLogger, weights: dict[str, Any]
) -> None:
    """Write the weights and the metadata of a run that is over.

    Args:
        run: that is over.
        work: its folder.
        metrics: its metrics.
        weights: `state_dict`, and `meta` to keep with it.

    Raises:
        UserError: there is no room for them.
    """
    _write_weights(run, work, weights)
    metrics.event("finish", iteration=weights["meta"]["iteration"])
    history = read_history(work.metrics_log)
    attempts = working_seconds(history)
    metadata = work.metadata()
    gpus = metadata["device"]["count"] if metadata["device"]["type"] == "cuda" else 0
    summary = {
        **metadata,
        "ended": _iso(time.time()),
        "seconds": sum(seconds for seconds, _ in attempts),
        "gpu_hours": gpus * sum(seconds / runs for seconds, runs in attempts) / 3600,
        "weights": {"path": str(work.weights), "sha256": sha256_file(work.weights)},
        "evaluations": [
            {"iteration": iteration, **{key: line[key] for key in _SCORES if key in line}}
            for iteration, line in history.evaluations.items()
        ],
    }
    work.write_summary(summary)
    export_outputs(run, work, summary)


def export_outputs(run: ResolvedRun, work: WorkDir, summary: dict[str, Any]) -> None:
    """Write the files that the workflow declares, the metadata of the run last."""
    write_outputs(work, run.job.run_file, summary, config_text(run.config))


def _metadata(
    run: ResolvedRun, before: dict[str, Any], model: nn.Module, device: torch.device, began: float
) -> dict[str, Any]:
    job_id = provenance.slurm_job()
    jobs = before.get("slurm_job_ids", [])
    return {
        "schema": SCHEMA,
        "experiment": run.job.name,
        "seed": run.job.seed,
        "identity": run.identity,
        "config": run.job.config.stem,
        **_recipe(run),
        "precision": run.precision,
        "deterministic": run.job.deterministic,
        "device": provenance.device_info(device.type, get_world_size()),
        "threads": torch.get_num_threads(),
        "batch": run.split.as_dict(),
        "accelerations": run.accelerations,
        "checkpoint": _checkpoint(run, before, model),
        "data": run.inputs["data"],
        "code": before.get("code") or provenance.code(),
        "versions": provenance.versions(),
        "slurm_job_ids": jobs if job_id is None or job_id in jobs else [*jobs, job_id],
        "attempts": before.get("attempts", 0) + 1,
        "started": before.get("started") or _iso(began),
    }


def _recipe(run: ResolvedRun) -> dict[str, Any]:
    """Return the recipe's numbers that a table shows."""
    optimiser = run.config.optim_wrapper
    return {
        "learning_rate": optimiser.optimizer.lr,
        "layer_decay": (optimiser.get("paramwise_cfg") or {}).get("layer_decay_rate"),
        "drop_path": run.config.model.get("backbone", {}).get("drop_path_rate"),
        "iterations": run.config.train_cfg.max_iters,
        "crop": _crop(run.config),
        "normalisation": _normalisation(run.config),
    }


def _crop(config: Config) -> list[int] | None:
    """Return height and width of training images, as the preprocessor pads them."""
    size = _preprocessor(config).get("size")
    return None if size is None else [size, size] if isinstance(size, int) else list(size)


def _normalisation(config: Config) -> dict[str, list[float]] | None:
    node = _preprocessor(config)
    if node.get("mean") is None or node.get("std") is None:
        return None
    return {name: [float(value) for value in node[name]] for name in ("mean", "std")}


def _preprocessor(config: Config) -> dict[str, Any]:
    return config.model.get("data_preprocessor") or config.get("data_preprocessor") or {}


def _checkpoint(
    run: ResolvedRun, before: dict[str, Any], model: nn.Module
) -> dict[str, Any] | None:
    """Return what is known of the pretrained checkpoint, and what the backbone took from it."""
    checkpoint = run.inputs["checkpoint"]
    if checkpoint is None:
        return None
    report = getattr(getattr(model, "backbone", None), "pretrained_report", None)
    loaded = report.as_dict() if report is not None else before.get("checkpoint") or {}
    return {**loaded, **checkpoint}


def _write_weights(run: ResolvedRun, work: WorkDir, weights: dict[str, Any]) -> None:
    contents = {
        "meta": {**weights["meta"], "cfg": config_text(run.config)},
        "state_dict": to_cpu(dict(weights["state_dict"])),
    }
    with atomic_writer(work.weights) as stream:
        torch.save(contents, stream)


def _iso(moment: float) -> str:
    return datetime.fromtimestamp(moment).astimezone().isoformat(timespec="seconds")

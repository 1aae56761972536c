"""Resolve a job for this machine: config, global batch, precision, inputs, identity."""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dist import get_world_size

from cae_seg.data.prepare.manifest import load_manifest
from cae_seg.engine.acceleration import accelerate
from cae_seg.engine.batch import BatchSplit, split_batch
from cae_seg.engine.checkpoint_report import known_sha256
from cae_seg.engine.classes import check_classes
from cae_seg.engine.compilation import check_compile, compiles
from cae_seg.engine.config import global_batch_size, load_config
from cae_seg.engine.data_set import use_data
from cae_seg.engine.identity import identity_of
from cae_seg.engine.job import EvaluateJob, Job, TrainJob
from cae_seg.engine.precision import choose_precision
from cae_seg.engine.ranks import run_on_main
from cae_seg.engine.validate import check_checkpoint, parse_learning_rate
from cae_seg.errors import UserError
from cae_seg.files import sha256_file


@dataclass(frozen=True)
class ResolvedRun:
    """What a training job means on this machine.

    Args:
        job: as asked.
        config: job applied, with stock types; kept in the run folder.
        built: the same with our faster types, from which the run is built.
        accelerations: names of what is faster.
        split: how a batch is shared.
        precision: "fp16", "bf16", "fp32" or "apex".
        identity: hash of what decides the numbers.
        inputs: what is known about checkpoint and data.
    """

    job: TrainJob
    config: Config
    built: Config
    accelerations: list[str]
    split: BatchSplit
    precision: str
    identity: str
    inputs: dict[str, Any]


def resolve_run(job: TrainJob, device: torch.device) -> ResolvedRun:
    """Resolve a training job; files are hashed once, on the main process.

    Raises:
        UserError: a mistake of the user's.
    """
    config = apply_job(load_config(job.config, job.cfg_options, job.knobs), job)
    precision = choose_precision(config.precision, device.type, config.optim_wrapper)
    split = split_batch(global_batch_size(config), get_world_size(), job.images_per_gpu)
    built = copy.deepcopy(config)
    built.train_dataloader.batch_size = split.batch_per_rank
    built.precision = precision
    accelerations = accelerate(built)
    if compiles(built):
        accelerations.append("compile")
    inputs = run_on_main(lambda: _inputs(config, job))
    decided = {
        "seed": job.seed,
        "precision": precision,
        "deterministic": job.deterministic,
        "global_batch": split.global_batch,
        "accelerations": accelerations,
        "data": inputs["data"]["fingerprint"],
    }
    identity = run_on_main(lambda: identity_of(config, decided, _hash_of(inputs)))
    return ResolvedRun(job, config, built, accelerations, split, precision, identity, inputs)


def apply_job(config: Config, job: Job) -> Config:
    """Return the config with what the job says: data, learning rate, checkpoint, precision.

    Raises:
        UserError: a file is missing, or a number is none.
    """
    config = copy.deepcopy(config)
    _require_parts(config, job)
    if job.data is not None:
        use_data(config, load_manifest(job.data))
    check_classes(config)
    if isinstance(job, EvaluateJob):
        return config
    check_compile(config, deterministic=job.deterministic)
    if job.learning_rate is not None:
        config.optim_wrapper.optimizer.lr = parse_learning_rate(job.learning_rate)
    if job.pretrained is not None:
        file = _checkpoint_file(job.pretrained)
        config.model.backbone.init_cfg = {"type": "Pretrained", "checkpoint": str(file)}
    if (source := pretrained_of(config)) is not None:
        check_checkpoint(source)
    config.precision = job.precision if job.precision != "auto" else config.get("precision", "auto")
    return config


def _require_parts(config: Config, job: Job) -> None:
    """Refuse a config without data, optimiser or length."""
    loaders = ("train_dataloader", "val_dataloader")
    for key in (*loaders, *(("optim_wrapper", "train_cfg") if isinstance(job, TrainJob) else ())):
        part = config.get(key)
        if key in loaders and isinstance(part, dict):
            key, part = f"{key}.dataset", part.get("dataset")
        if not isinstance(part, dict):
            state = "is missing" if part is None else "is no mapping"
            raise UserError(f"{config.filename}: {key}: {state}; take it from a shipped config")
        if key.endswith(".dataset") and part.get("pipeline", True) in ([], None):
            raise UserError(f"{config.filename}: {key}.pipeline: is empty; name its transforms")


def pretrained_of(config: Config) -> Path | None:
    """Return the checkpoint file that the backbone starts from; None for an address or none."""
    start = (config.model.get("backbone") or {}).get("init_cfg")
    source = start.get("checkpoint") if isinstance(start, dict) else None
    return Path(source) if source is not None and "://" not in str(source) else None


def _checkpoint_file(path: Path) -> Path:
    """Return the checkpoint itself where the report of its inspection is named."""
    return known_sha256(path)[0] if path.suffix == ".json" else path


def _inputs(config: Config, job: TrainJob) -> dict[str, Any]:
    checkpoint = None
    if (source := pretrained_of(config)) is not None:
        checkpoint = {"path": str(source), "sha256": _sha256(source, job.pretrained)}
    if job.data is None:
        return {"checkpoint": checkpoint, "data": _unprepared(config)}
    manifest = load_manifest(job.data)
    data = {
        "fingerprint": manifest.fingerprint,
        "root": str(manifest.root),
        "images": dict(manifest.counts),
    }
    return {"checkpoint": checkpoint, "data": data}


def _unprepared(config: Config) -> dict[str, Any]:
    """Describe data without a manifest."""
    node = config.train_dataloader.dataset
    while node.get("data_root") is None and node.get("dataset") is not None:
        node = node.dataset
    root = node.get("data_root")
    if root is not None and not Path(root).is_dir():
        raise UserError(f"{root}: no data here; run `cae-seg prepare data` or pass --data")
    return {"fingerprint": None, "root": root and str(root)}


def _sha256(source: Path, given: Path | None) -> str:
    """Hash the checkpoint, unless its inspection has."""
    if given is not None and given.suffix == ".json":
        return known_sha256(given)[1]
    return sha256_file(source)


def _hash_of(inputs: dict[str, Any]) -> Any:
    known = inputs["checkpoint"]

    def hash_file(path: Path) -> str:
        if known is not None and path == Path(known["path"]):
            return known["sha256"]
        return sha256_file(path)

    return hash_file

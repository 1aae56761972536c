"""What a training job comes to on this machine, and the identity that it thereby has."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config

from cae_seg.engine.checkpoint_report import known_sha256
from cae_seg.engine.job import TrainJob
from cae_seg.engine.ranks import Ranks
from cae_seg.engine.runner import (
    BatchSplit,
    apply_job,
    choose_precision,
    identity_of,
    load_config,
    pretrained_of,
    split_batch,
)
from cae_seg.errors import UserError
from cae_seg.files import sha256_file


@dataclass(frozen=True)
class Plan:
    """What a job comes to on this machine."""

    job: TrainJob
    config: Config
    split: BatchSplit
    precision: str
    identity: str
    inputs: dict[str, Any]  # facts about checkpoint and data


def make_plan(job: TrainJob, ranks: Ranks) -> Plan:
    """Resolve config, batch, precision and identity; the files are hashed once."""
    config = apply_job(load_config(job.config, job.cfg_options, job.knobs), job)
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
    from cae_seg.data.prepare.manifest import load_manifest

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

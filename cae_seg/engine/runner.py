"""From config and job to the parts of a run: model, loaders, optimiser, schedule.

The config is mmengine's and so are the parts; what depends on the machine (precision, batch split,
loaders) is decided here, and what decides the numbers makes the run's identity.
"""

import copy
import hashlib
import importlib.util
import json
import os
import pprint
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mmengine.optim.scheduler  # noqa: F401  (registers the schedulers)
import numpy as np
import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.registry import MODELS, PARAM_SCHEDULERS, DefaultScope
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import DataLoader

from cae_seg.engine import config as config_file
from cae_seg.engine.checkpoint_report import known_sha256
from cae_seg.engine.job import EvaluateJob, Job, Knobs
from cae_seg.engine.ranks import Ranks
from cae_seg.engine.validate import check_checkpoint, parse_learning_rate
from cae_seg.errors import UserError
from cae_seg.models.pretrained.reading import load_checkpoint_file
from cae_seg.models.pretrained.values import check_values
from cae_seg.run.logs import quiet_imports

with quiet_imports():
    import cae_seg.registration  # noqa: F401  (registers our parts, and mmsegmentation's)

NOT_RUN = ("custom_hooks", "custom_imports_hooks")
# Keys that say where something lies or how a run behaves, not what it computes.
NOT_DECIDING = frozenset(
    {"data_root", "checkpoint", "fast_paths", "fast", "fused", "use_checkpoint"}
)


@dataclass(frozen=True)
class BatchSplit:
    """How the images of one iteration are shared: over ranks, and over time within a rank."""

    total: int
    ranks: int
    micro: int

    @property
    def per_rank(self) -> int:
        """Images an iteration of one rank."""
        return self.total // self.ranks

    @property
    def accumulation(self) -> int:
        """Backward passes per step of the optimiser."""
        return self.per_rank // self.micro

    def as_dict(self) -> dict[str, int]:
        """Return what the run's record says."""
        return {
            "total": self.total,
            "per_rank": self.per_rank,
            "micro": self.micro,
            "accumulation": self.accumulation,
            "ranks": self.ranks,
        }


def split_batch(total: int, ranks: int, fitting: int | None) -> BatchSplit:
    """Share `total` images over `ranks`, in the largest equal parts of at most `fitting`.

    Raises:
        UserError: the ranks cannot share evenly.
    """
    if total % ranks:
        fits = ", ".join(str(n) for n in range(1, total + 1) if total % n == 0)
        raise UserError(
            f"{total} images an iteration cannot be shared evenly by {ranks} "
            f"processes; use one of {fits}"
        )
    per_rank = total // ranks
    micro = max(
        n for n in range(1, per_rank + 1) if per_rank % n == 0 and n <= (fitting or per_rank)
    )
    if total > 1 and micro * ranks < 2:
        raise UserError(
            "--images-per-gpu 1: batch norm needs two images at once; allow 2, or use several GPUs"
        )
    return BatchSplit(total, ranks, micro)


def choose_precision(asked: str, kind: str) -> str:
    """Return "fp16", "bf16", "fp32" or "apex" for a device.

    Args:
        asked: one of these, or "auto": fp16 on "cuda", fp32 on "cpu".
        kind: "cuda" or "cpu".

    Raises:
        UserError: unknown, or not for this device, or NVIDIA's apex is missing.
    """
    if asked == "auto":
        return "fp16" if kind == "cuda" else "fp32"
    if asked not in ("fp16", "bf16", "fp32", "apex"):
        raise UserError(f"precision {asked}: is none of auto, fp16, bf16, fp32, apex")
    if asked != "fp32" and kind == "cpu":
        raise UserError(f"precision {asked}: needs a GPU; on the CPU use fp32 (or auto)")
    if asked == "apex":
        _need_apex()
    return asked


def _need_apex() -> None:
    try:
        present = importlib.util.find_spec("apex.amp") is not None
    except ImportError:
        present = False
    if not present:
        raise UserError(
            "precision apex: needs NVIDIA's apex, built from github.com/NVIDIA/apex (the package "
            "`apex` of the Python registry is an unrelated web library); fp16 needs nothing more "
            "and means the same"
        )


def load_config(
    path: Path, options: dict[str, Any] | None = None, knobs: Knobs | None = None
) -> Config:
    """Read a config that this engine can run, its options checked and merged.

    Raises:
        UserError: as `cae_seg.engine.config.load_config`, or it has hooks of mmengine's.
    """
    config = config_file.load_config(path, options, knobs)
    if unused := [key for key in NOT_RUN if config.get(key)]:
        raise UserError(f"{path}: {unused[0]}: hooks of mmengine's are not run here; remove it")
    return config


def apply_job(config: Config, job: Job) -> Config:
    """Return the config with what the job says: rate, checkpoint, data, seed."""
    config = copy.deepcopy(config)
    if job.data is not None:
        from cae_seg.data.prepare.manifest import load_manifest

        point_to(config, load_manifest(job.data).root)
    if isinstance(job, EvaluateJob):
        return config
    if job.learning_rate is not None:
        config.optim_wrapper.optimizer.lr = parse_learning_rate(job.learning_rate)
    if job.pretrained is not None:
        config.model.backbone.init_cfg = _start_from(_weights_file(job.pretrained))
    if (source := pretrained_of(config)) is not None:
        check_checkpoint(source)
    config.precision = job.precision if job.precision != "auto" else config.get("precision", "auto")
    config.train_dataloader.dataset.seed = job.seed
    return config


def point_to(config: Config, root: Path) -> None:
    """Make every data set of the config read from `root`."""
    for key in ("train_dataloader", "val_dataloader"):
        node = config.get(key, {}).get("dataset")
        while node is not None:
            if "data_root" in node:
                node.data_root = str(root)
            node = node.get("dataset")
    config.data_root = str(root)


def pretrained_of(config: Config) -> Path | None:
    """Return the checkpoint that the backbone starts from."""
    start = config.model.backbone.get("init_cfg")
    return Path(start["checkpoint"]) if start else None


def config_text(config: Config) -> str:
    """Write a config as Python, a key a line; `load_config` reads it back."""
    lines = (
        f"{key} = {pprint.pformat(value, width=100, sort_dicts=False)}"
        for key, value in config.to_dict().items()
    )
    return "\n".join(lines) + "\n"


def config_facts(config: Config) -> dict[str, Any]:
    """Return the recipe's numbers that a table shows."""
    optimiser = config.optim_wrapper
    return {
        "learning_rate": optimiser.optimizer.lr,
        "layer_decay": optimiser.get("paramwise_cfg", {}).get("layer_decay_rate"),
        "drop_path": config.model.backbone.get("drop_path_rate"),
        "iterations": config.train_cfg.max_iters,
    }


def identity_of(
    config: Config, seed: int, precision: str, checkpoint: str | None, data: str | None
) -> str:
    """Hash what decides the numbers of a run.

    Not among it: the number of ranks, loader workers, paths, logging, how often is saved.

    Args:
        config: with the job applied.
        seed: of the run.
        precision: as chosen for the device.
        checkpoint: SHA-256 of the pretrained checkpoint.
        data: fingerprint of the data set.
    """
    optimiser = {key: value for key, value in config.optim_wrapper.items() if key != "type"}
    deciding = {
        "model": config.model,
        "optimiser": optimiser,
        "schedule": config.param_scheduler,
        "iterations": config.train_cfg.max_iters,
        "total": config.total_batch_size,
        "training_data": config.train_dataloader.dataset.dataset,
        "validation_data": config.val_dataloader.dataset,
        "seed": seed,
        "precision": precision,
        "checkpoint": checkpoint,
        "data": data,
    }
    return digest(deciding)


def digest(value: Any) -> str:
    """Hash a nested config value by content, without what does not decide numbers."""
    text = json.dumps(_plain(value), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def build_model(config: Config, seed: int, *, start: bool) -> nn.Module:
    """Build the segmentor on the CPU, its random start values drawn from `seed`.

    Args:
        config: with the job applied.
        seed: of the run.
        start: whether to draw start values and load the pretrained checkpoint; not needed where
            all weights are loaded afterwards.

    Raises:
        UserError: unknown type names or a checkpoint that does not fit.
    """
    seed_all(seed)
    model_config = copy.deepcopy(config.model)
    if not start:
        model_config.backbone.init_cfg = None
    model = _build(config, model_config)
    if start:
        model.init_weights()
    return model


def build_backbone(config: Config) -> nn.Module:
    """Build the backbone alone, without its checkpoint.

    Raises:
        UserError: an unknown type name.
    """
    backbone = copy.deepcopy(config.model.backbone)
    backbone.init_cfg = None
    return _build(config, backbone)


def _build(config: Config, part: Config) -> nn.Module:
    DefaultScope.get_instance("cae-seg", scope_name=config.get("default_scope", "mmseg"))
    try:
        return MODELS.build(part)
    except KeyError as error:
        raise UserError(_unknown_type(config, error)) from error
    except (TypeError, ValueError, AssertionError) as error:
        raise UserError(_unbuildable(config, error)) from error


def seed_all(seed: int) -> None:
    """Seed Python's, NumPy's and torch's global generators."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def build_train_loader(
    config: Config, split: BatchSplit, ranks: Ranks, workers: int | None, done: int
) -> DataLoader:
    """Build the endless loader of this rank's share, going on after `done` iterations."""
    loader = copy.deepcopy(config.train_dataloader)
    loader.batch_size = split.per_rank
    loader.sampler.total_batch_size = split.total
    loader.pin_memory = ranks.device.type == "cuda"
    _set_workers(loader, default_workers(loader.num_workers, workers, ranks))
    loader = Runner.build_dataloader(loader)
    loader.sampler.skip(done * split.per_rank)
    return loader


def build_optimiser(
    model: nn.Module, config: Config, precision: str, split: BatchSplit
) -> OptimWrapper:
    """Build the optimiser in its wrapper for a precision."""
    wrapper = copy.deepcopy(config.optim_wrapper)
    wrapper.update(_PRECISION[precision], accumulative_counts=split.accumulation)
    return build_optim_wrapper(model, wrapper)


def build_schedulers(optimiser: OptimWrapper, config: Config) -> list:
    """Build the learning-rate schedulers, which multiply."""
    return [
        PARAM_SCHEDULERS.build(copy.deepcopy(scheduler), default_args={"optimizer": optimiser})
        for scheduler in config.param_scheduler
    ]


_PRECISION: dict[str, dict[str, Any]] = {
    "fp32": {"type": "OptimWrapper"},
    "fp16": {"type": "AmpOptimWrapper", "dtype": "float16", "loss_scale": "dynamic"},
    "bf16": {"type": "AmpOptimWrapper", "dtype": "bfloat16", "loss_scale": {"enabled": False}},
    "apex": {"type": "ApexOptimWrapper", "opt_level": "O1", "loss_scale": "dynamic"},
}


def default_workers(configured: int, asked: int | None, ranks: Ranks) -> int:
    """Return the number of loader processes: as asked, or as the config says if there are cores."""
    if asked is not None:
        return asked
    cores = len(os.sched_getaffinity(0)) // ranks.world
    # On the CPU the model itself keeps all cores busy.
    return min(configured, max(cores, 1)) if ranks.device.type == "cuda" else 0


def load_weights(model: nn.Module, path: Path) -> None:
    """Fill the whole segmentor from a fine-tuned checkpoint, ours or a published one.

    Raises:
        UserError: it cannot be read, or is of another architecture.
    """
    contents = load_checkpoint_file(path)
    state = contents.get("state_dict", contents)
    state = {name.removeprefix("module."): value for name, value in state.items()}
    check_values(state, model.state_dict(), path)
    try:
        model.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: does not fit the config's model ({_misfit(state, model)}); "
            "take the config these weights were trained with"
        ) from error


def _misfit(state: dict[str, Any], model: nn.Module) -> str:
    """Say in a few words what of a state dict does not fit."""
    own = model.state_dict()
    for name, value in own.items():
        if name not in state:
            return f"{name} is missing"
        if getattr(state[name], "shape", None) != value.shape:
            return f"{name} is {tuple(getattr(state[name], 'shape', ()))}, not {tuple(value.shape)}"
    return f"{next((name for name in state if name not in own), 'something')} has no place"


def _set_workers(loader: Config, workers: int) -> None:
    loader.num_workers = workers
    if workers == 0:
        loader.persistent_workers = False
        loader.pop("prefetch_factor", None)


def _start_from(path: Path | str) -> dict[str, str]:
    return {"type": "Pretrained", "checkpoint": str(path)}


def _weights_file(path: Path) -> Path:
    """Return the checkpoint itself where the report of its inspection is named."""
    return known_sha256(path)[0] if path.suffix == ".json" else path


def _unknown_type(config: Config, error: KeyError) -> str:
    import difflib

    wanted = config.model.get("type"), config.model.backbone.get("type")
    known = sorted(
        name for registry in (MODELS, *MODELS.children.values()) for name in registry.module_dict
    )
    for name in wanted:
        if name not in known:
            near = ", ".join(difflib.get_close_matches(str(name), known, n=3)) or "CAE"
            return f"{config.filename}: no model or backbone named {name}; nearest: {near}"
    return _unbuildable(config, error)


def _unbuildable(config: Config, error: Exception) -> str:
    reason = config_file.one_line(error)
    return f"{config.filename}: the model cannot be built ({reason}); correct the config"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            str(key): _plain(entry)
            for key, entry in value.items()
            if key not in NOT_DECIDING and not (key == "init_cfg" and entry is None)
        }
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return value if isinstance(value, str | int | float | bool | None) else repr(value)

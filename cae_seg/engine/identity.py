"""The identity of a run: a hash of everything that can change one bit of it, and of nothing else.

Paths, ranks, loader workers, logging and the interval of checkpoints do not belong to it.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config

from cae_seg.files import sha256_file

# Top-level keys that decide numbers; those of the optimiser and the hooks are chosen from below.
_DECIDING = (
    "model",
    "data_preprocessor",
    "param_scheduler",
    "val_evaluator",
    "custom_hooks",
    "efficient_conv_bn_eval",
    "compile",
    "evaluation_precision",
)
_PATHS = ("data_root", "ann_file_root")
_CHECKPOINT_KEYS = ("checkpoint", "load_from", "pretrained")
# Hooks that watch a run without changing it, by their key in `default_hooks`.
_WATCHING = ("runtime_info", "timer", "logger", "visualization", "sampler_seed")
_INTERVALS = ("interval", "max_keep_ckpts", "out_dir", "by_epoch", "type")


def identity_of(
    config: Config, decided: Mapping[str, Any], hash_file: Callable[[Path], str]
) -> str:
    """Hash what decides the numbers of a run.

    Args:
        config: job applied, with stock types.
        decided: what is not in the config: seed, precision, determinism, global batch,
            accelerations that are on, fingerprint of the data.
        hash_file: returns the SHA-256 of a checkpoint that the config names.
    """
    optimiser = {key: v for key, v in config.optim_wrapper.items() if key not in ("type", "dtype")}
    deciding = {
        **{key: config.get(key) for key in _DECIDING},
        "optim_wrapper": optimiser,
        "training_data": config.train_dataloader.dataset,
        "validation_data": (config.get("val_dataloader") or {}).get("dataset"),
        "hooks": _deciding_hooks(config),
        "load_from": config.get("load_from"),
        "scaled_rate": (config.get("auto_scale_lr") or {}).get("enable", False),
        "iterations": config.train_cfg.max_iters,
        **decided,
    }
    if deciding["custom_hooks"] or deciding["hooks"]:
        # Such hooks may act on the scores, so that it counts when there are any.
        deciding["train_cfg"] = config.train_cfg
    return digest(deciding, hash_file)


def digest(value: Any, hash_file: Callable[[Path], str] = sha256_file) -> str:
    """Hash a nested config value by content: files by what is in them, not by where they are."""
    text = json.dumps(_plain(value, hash_file), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _deciding_hooks(config: Config) -> dict[str, Any]:
    hooks = {
        key: hook
        for key, hook in (config.get("default_hooks") or {}).items()
        if key not in _WATCHING and hook is not None
    }
    checkpoint = hooks.pop("checkpoint", None) or {}
    checkpoint = {key: value for key, value in checkpoint.items() if key not in _INTERVALS}
    if checkpoint:
        hooks["checkpoint"] = checkpoint
    if (hooks.get("param_scheduler") or {}).get("type") == "ParamSchedulerHook":
        hooks.pop("param_scheduler")
    return hooks


def _plain(value: Any, hash_file: Callable[[Path], str]) -> Any:
    if isinstance(value, Mapping):
        return {
            str(key): _file(entry, hash_file)
            if key in _CHECKPOINT_KEYS
            else _plain(entry, hash_file)
            for key, entry in value.items()
            if key not in _PATHS and not (key == "init_cfg" and entry is None)
        }
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [_plain(entry, hash_file) for entry in value]
    return value if isinstance(value, str | int | float | bool | None) else repr(value)


def _file(value: Any, hash_file: Callable[[Path], str]) -> Any:
    if isinstance(value, str | Path) and Path(value).is_file():
        return hash_file(Path(value))
    return _plain(value, hash_file)

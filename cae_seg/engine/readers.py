"""Which names the reader of each part of a config takes.

Under a `type` these are the arguments of the registered class. The few mappings without a type that
are read by name are listed here.
"""

import difflib
import inspect
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import Registry
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from cae_seg.engine.acceleration import REPLACEMENTS
from cae_seg.models.accelerate import FAST_PATHS

# Top-level keys that Runner takes or reads from its config, and those that our engine reads.
READ_BY_RUNNER = frozenset(inspect.signature(Runner.__init__).parameters) - {"self", "cfg"} | {
    "activation_checkpointing",
    "compile",
    "custom_imports",
    "efficient_conv_bn_eval",
    "find_unused_parameters",
    "model_wrapper_cfg",
    "sync_bn",
    "tta_model",
    "tta_pipeline",
}
READ_BY_US = {
    "acceleration",
    "evaluation_precision",
    "known_keys",
    "precision",
    "total_batch_size",
}
TOP_LEVEL = READ_BY_RUNNER | READ_BY_US
# Top-level keys of mmsegmentation 0.x, which have other names or forms in 1.x.
OF_OLD_VERSIONS = frozenset(
    {
        "checkpoint_config",
        "data",
        "evaluation",
        "fp16",
        "log_config",
        "lr_config",
        "optimizer_config",
        "resume_from",
        "runner",
        "workflow",
    }
)

_CLIP_GRAD = {"type", "max_norm", "norm_type", "clip_value", "error_if_nonfinite", "foreach"}
_LOADER = {*inspect.signature(DataLoader).parameters, "num_batch_per_epoch"}
# Mappings without a `type`: pattern of the path, and all names that are read from them.
_MAPPINGS: list[tuple[str, set[str]]] = [
    (r"model\.train_cfg", {"num_points", "oversample_ratio", "importance_sample_ratio"}),
    (r"(model\.)?data_preprocessor\.test_cfg", {"size", "size_divisor"}),
    (r"(train|val|test)_dataloader", _LOADER),
    (r"env_cfg", {"cudnn_benchmark", "mp_cfg", "dist_cfg", "resource_limit"}),
    (r"env_cfg\.mp_cfg", {"mp_start_method", "opencv_num_threads"}),
    (r"env_cfg\.dist_cfg", {"backend", "timeout", "init_backend"}),
    (r"acceleration", {*REPLACEMENTS, *FAST_PATHS}),
    (r"compile", set(inspect.signature(torch.compile).parameters) - {"model"}),
    (r"auto_scale_lr", {"enable", "base_batch_size"}),
    (r"custom_imports", {"imports", "allow_failed_imports"}),
    (r"optim_wrapper\.clip_grad", _CLIP_GRAD),
    (r"optim_wrapper\.paramwise_cfg\.custom_keys\..+", {"lr_mult", "decay_mult"}),
]
# Mappings without a `type` that may hold more than is known here: names besides those of the file.
_OPEN_MAPPINGS: list[tuple[str, set[str]]] = [
    (r"model\.test_cfg", {"mode", "crop_size", "stride"}),
    (r".*\.data_prefix", {"img_path", "seg_map_path"}),
    (r".*\.metainfo", {"classes", "palette"}),
    (r".*\.backend_args", {"backend"}),
]
# Names that a builder takes out of a mapping before its class gets the rest.
_TAKEN_BY_BUILDER: list[tuple[str, set[str]]] = [
    (r"optim_wrapper", {"constructor", "paramwise_cfg", "optimizer"}),
    (r"train_cfg", {"by_epoch"}),
    (r"(default_hooks\.[^.]+|custom_hooks\.\d+)", {"priority"}),
    (r"param_scheduler(\.\d+)?", {"convert_to_iter_based"}),
    (r".*norm_cfg", {"requires_grad"}),
    (r".*init_cfg(\.\d+)?", {"override"}),
]
_DEFAULT_HOOKS = {
    "runtime_info",
    "timer",
    "sampler_seed",
    "logger",
    "param_scheduler",
    "checkpoint",
}
_DEFAULT_TYPES = {
    "train_cfg": "IterBasedTrainLoop",
    "val_cfg": "ValLoop",
    "test_cfg": "TestLoop",
    "log_processor": "LogProcessor",
    "optim_wrapper": "OptimWrapper",
    "visualizer": "Visualizer",
}
# Types whose parts have types of another library: albumentations' transforms.
_OWN_TYPES_INSIDE = {"Albu"}
# Arguments that name the class to which the rest of the arguments goes, and their defaults.
_FORWARDING = {"resize_type": "Resize", "ema_type": "ExponentialMovingAverage"}
_PARAMWISE_OF_MMENGINE = {
    "custom_keys",
    "norm_decay_mult",
    "bias_lr_mult",
    "bias_decay_mult",
    "dwconv_decay_mult",
    "dcn_offset_lr_mult",
    "flat_decay_mult",
    "bypass_duplicate",
}
# What each optimiser constructor reads from `paramwise_cfg`.
_PARAMWISE = {
    "DefaultOptimWrapperConstructor": _PARAMWISE_OF_MMENGINE,
    "ForceDefaultOptimWrapperConstructor": _PARAMWISE_OF_MMENGINE | {"force_default_settings"},
    "LearningRateDecayOptimizerConstructor": {"num_layers", "decay_rate", "decay_type"},
    "LayerDecayOptimizerConstructor": {"num_layers", "layer_decay_rate"},
}


@dataclass(frozen=True)
class Reader:
    """What reads a mapping of a config.

    Args:
        title: how a message calls the mapping or its class.
        names: that are read; None for any name.
        complete: whether no other names are read. Otherwise those of the file are as well.
    """

    title: str
    names: Collection[str] | None
    complete: bool = True

    def reads(self, name: str) -> bool:
        """Say whether a name is certainly read."""
        return self.names is None or name in self.names


def reader_of(config: Config, path: str, node: dict[str, Any]) -> Reader:
    """Return what reads the mapping `node`, which the config holds at the dotted key `path`."""
    if found := [names for pattern, names in _MAPPINGS if re.fullmatch(pattern, path)]:
        return Reader(path, found[0])
    if path == "default_hooks":
        added = {name for name, hook in node.items() if "type" in (hook or {"type"})}
        return Reader(path, added | _DEFAULT_HOOKS)
    if path == "optim_wrapper.paramwise_cfg":
        return _paramwise_reader(config)
    if path == "optim_wrapper.paramwise_cfg.custom_keys":
        return Reader(path, None)
    kind = node.get("type") or _default_type(path, node)
    names = kind and _names_of_type(kind, node, config.get("default_scope", "mmseg"))
    if not names:
        return Reader(path, _matching(_OPEN_MAPPINGS, path), complete=False)
    title = kind if isinstance(kind, str) else kind.__name__
    return Reader(f"{path} ({title})", names | {"type"} | _matching(_TAKEN_BY_BUILDER, path))


def unknown_types(config: Config) -> Iterator[tuple[str, str]]:
    """Yield dotted key and name of each type in a config that no registry knows."""
    scope = config.get("default_scope", "mmseg")
    for top in sorted(TOP_LEVEL & set(config)):
        yield from _unknown_below(config[top], top, scope)


def similar_types(kind: str, scope: str) -> list[str]:
    """Return registered names that are similar to an unknown one."""
    registries = {id(found): found for own in _registries(scope) for found in (own, own.parent)}
    names = {name for found in registries.values() if found for name in found.module_dict}
    return difflib.get_close_matches(kind, sorted(names), n=3)


def _unknown_below(node: Any, path: str, scope: str) -> Iterator[tuple[str, str]]:
    if isinstance(node, dict):
        kind = node.get("type")
        if isinstance(kind, str) and not any(re.fullmatch(p, path) for p, _ in _MAPPINGS):
            if not _is_registered(kind, scope):
                yield f"{path}.type", kind
            if kind in _OWN_TYPES_INSIDE:
                return
    if isinstance(node, dict | list | tuple):
        pairs = node.items() if isinstance(node, dict) else enumerate(node)
        for name, value in pairs:
            yield from _unknown_below(value, f"{path}.{name}", scope)


@cache
def _is_registered(kind: str, scope: str) -> bool:
    return bool(_registered(kind, scope))


def _paramwise_reader(config: Config) -> Reader:
    constructor = config.optim_wrapper.get("constructor") or "DefaultOptimWrapperConstructor"
    names = _PARAMWISE.get(constructor.split(".")[-1])
    return Reader(f"paramwise_cfg of {constructor}", names or set(), complete=names is not None)


def _default_type(path: str, node: dict[str, Any]) -> str | None:
    if path.endswith("_evaluator") and "metrics" in node:
        return "Evaluator"
    return _DEFAULT_TYPES.get(path)


def _matching(table: list[tuple[str, set[str]]], path: str) -> set[str]:
    found = (names for pattern, names in table if re.fullmatch(pattern, path))
    return set().union(*found)


def _names_of_type(kind: Any, node: dict[str, Any], scope: str) -> set[str]:
    """Return the arguments of a class; none where the class is unknown."""
    names = set(_arguments_of_type(kind, scope))
    for argument, default in _FORWARDING.items():
        if argument in names:
            names |= _arguments_of_type(node.get(argument) or default, scope)
    return names


@cache
def _arguments_of_type(kind: Any, scope: str) -> frozenset[str]:
    builders = _registered(kind, scope) if isinstance(kind, str) else [kind]
    return frozenset().union(*(_arguments(builder) for builder in builders))


def _registered(kind: str, scope: str) -> list[Any]:
    """Return what the registries of a scope, or those above it, hold under a name."""
    found = []
    for registry in _registries(scope):
        try:
            builder = registry.get(kind)
        except Exception:  # the name belongs to a package that is missing
            continue
        if builder is not None and builder not in found:
            found.append(builder)
    return found


@cache
def _registries(scope: str) -> list[Registry]:
    try:
        module = import_module(f"{scope}.registry")
    except ImportError:
        module = import_module("mmengine.registry")
    return [value for value in vars(module).values() if isinstance(value, Registry)]


def _arguments(builder: Any) -> set[str]:
    """Collect named arguments, through **kwargs up to the bases that take them."""
    names: set[str] = set()
    for function in _constructors(builder):
        try:
            parameters = inspect.signature(function).parameters.values()
        except ValueError:  # written in C
            break
        names |= {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        if not any(p.kind == p.VAR_KEYWORD for p in parameters):
            break
    return names - {"self"}


def _constructors(builder: Any) -> list[Any]:
    if not inspect.isclass(builder):
        return [builder]
    return [vars(owner)["__init__"] for owner in builder.__mro__ if "__init__" in vars(owner)]

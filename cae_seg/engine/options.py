"""Refuse options that would have no effect: nothing reads them, or something else decides."""

import difflib
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from mmengine.config import Config
from mmengine.registry import MODELS

from cae_seg.engine.meta import on_meta_device
from cae_seg.engine.readers import OF_OLD_VERSIONS, TOP_LEVEL, reader_of
from cae_seg.errors import UserError

# Keys that the command decides, whatever the config holds: pattern and what to use instead.
_DECIDED = [
    (r"train_dataloader\.batch_size", "--batch-size, the images per iteration over all GPUs"),
    (r"train_dataloader\.(batch_sampler|drop_last|sampler|num_batch_per_epoch)(\..*)?", "--seed"),
    (r"(train|val|test)_dataloader\.num_workers", "--workers"),
    (r"train_cfg\.max_iters", "--iterations, which moves the schedules too"),
    (r"optim_wrapper\.accumulative_counts", "--images-per-gpu"),
    (r"optim_wrapper\.(type|dtype)", "--precision"),
    (r"randomness(\..*)?", "--seed and --deterministic"),
    (r"env_cfg\.cudnn_benchmark", "--deterministic; without it the fastest kernels are chosen"),
    (r"work_dir", "--work-dir"),
    (r"launcher", "--gpus"),
    (r"resume", "the same --work-dir again: an interrupted run resumes by itself"),
    (r"experiment_name", "--name"),
]
_DECIDED_BY_ENGINE = (
    r"(model_wrapper_cfg|sync_bn|env_cfg\.dist_cfg|.*_dataloader\.pin_memory)(\..*)?"
)
# Names that are often given for one of the command's own options.
_SYNONYMS = {
    "iterations": "--iterations",
    "max_iterations": "--iterations",
    "max_iters": "--iterations",
    "total_iters": "--iterations",
    "crop_size": "--crop-size HEIGHT WIDTH",
    "batch_size": "--batch-size",
    "samples_per_gpu": "--images-per-gpu",
    "workers_per_gpu": "--workers",
    "learning_rate": "--learning-rate",
    "lr": "--learning-rate",
    "pretrained": "--pretrained",
    "data_root": "--data MANIFEST",
    "seed": "--seed",
    "deterministic": "--deterministic",
}
_CUSTOM_KEYS = "optim_wrapper.paramwise_cfg.custom_keys."


def check_options(config: Config, options: dict[str, Any]) -> None:
    """Refuse options that have no effect.

    Args:
        config: as read from its file, with the stock names of types; its custom modules imported.
        options: dotted keys and their values.

    Raises:
        UserError: naming the key, and what to use instead or what was probably meant.
    """
    if problems := find_problems(config, options):
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise UserError(f"{problems[0]}{more}")


def find_problems(config: Config, options: dict[str, Any]) -> list[str]:
    """Return a line for each option that has no effect, as `check_options` reports them.

    Raises:
        UserError: an option cannot be merged into the config.
    """
    checker = _Checker(config, merge_options(config, options))
    found = (checker.problem(key) for key in _leaf_keys(options))
    return [problem for problem in found if problem]


def merge_options(config: Config, options: dict[str, Any]) -> Config:
    """Return a copy of the config with the options merged in.

    Raises:
        UserError: an option does not fit, e.g. an index beyond the end of a list.
    """
    merged = config.copy()
    for key, value in options.items():
        _open_empty_parts(merged, key)
        try:
            merged.merge_from_dict({key: value})
        except (KeyError, TypeError, AssertionError, AttributeError, ValueError) as error:
            raise UserError(f"{key}: {_misfit(merged, key, error)}") from error
    return merged


def _open_empty_parts(config: Config, key: str) -> None:
    """Let an option set a part of what is None in the file, e.g. `clip_grad.max_norm`."""
    node: Any = config._cfg_dict
    for name in key.split(".")[:-1]:
        if isinstance(node, dict) and name in node and node[name] is None:
            node[name] = {}
        node = _entry(node, name)


def unread_keys(config: Config) -> Iterator[str]:
    """Yield the dotted keys of a config file that nothing reads.

    Variables at the top of the file are not among them, because the file itself may have read them;
    keys of mmsegmentation 0.x are.
    """
    yield from sorted(OF_OLD_VERSIONS & set(config))
    for top in sorted(TOP_LEVEL & set(config)):
        for path, node in _nodes(config[top], top):
            if isinstance(node, dict) and (reader := reader_of(config, path, node)).complete:
                keys = (f"{path}.{name}" for name in node if not reader.reads(str(name)))
                yield from (key for key in keys if not _is_known(key, config))


@dataclass(frozen=True)
class _Checker:
    """Looks for the reader of each option.

    Args:
        config: as read from its file.
        merged: the config with all options merged in: it has the types that options change.
    """

    config: Config
    merged: Config

    def problem(self, key: str) -> str | None:
        """Return what is wrong with an option, or None."""
        if _is_known(key, self.config) or _is_known(key, self.merged):
            return None
        reason = self._decided(key) or self._unread(key) or self._unused(key)
        return f"{key}: {reason}" if reason else None

    @cached_property
    def parameter_names(self) -> list[str]:
        """Names of the model's parameters; none where it cannot be built here."""
        try:
            with on_meta_device():
                model = MODELS.build(self.merged.copy().model)
        except Exception:  # reported with its reason where the model is built for use
            return []
        return [name for name, _ in model.named_parameters()]

    def _decided(self, key: str) -> str | None:
        """Return what decides a key instead of the config."""
        for pattern, instead in _DECIDED:
            if re.fullmatch(pattern, key):
                return f"decided by the command; use {instead}"
        if re.fullmatch(_DECIDED_BY_ENGINE, key):
            return "decided by the engine for this machine; leave it out"
        if key.split(".")[0] == "data_preprocessor" and "data_preprocessor" in self.config.model:
            return f"model.data_preprocessor is used instead; set model.{key}"
        return None

    def _unread(self, key: str) -> str | None:
        """Follow a dotted key through the config; return what is wrong with the first bad part."""
        top, *rest = key.split(".")
        if top not in TOP_LEVEL:
            return self._variable(top, rest)
        before, after, path = self.config.get(top), self.merged.get(top), top
        for name in rest:
            if isinstance(after, dict) and (problem := self._bad_name(path, name, before, after)):
                return problem
            before, after, path = _entry(before, name), _entry(after, name), f"{path}.{name}"
        return None

    def _bad_name(self, path: str, name: str, before: Any, after: dict) -> str | None:
        reader, own = reader_of(self.merged, path, after), set(before or ())
        if reader.reads(name) or name == "_delete_":
            return None
        if not reader.complete and name in own:
            return None
        if not reader.complete and not own:
            return f"{path} has no type, so that nothing reads {name}; set {path}.type too"
        return f"{reader.title} has no {name}{_hint(name, set(reader.names or ()) | own)}"

    def _unused(self, key: str) -> str | None:
        """Return why a key that has a reader is not read together with the rest of the config."""
        mode = (self.merged.model.get("test_cfg") or {}).get("mode", "whole")
        if re.match(r"model\.test_cfg\.(crop_size|stride)", key) and "slide" not in mode:
            return f"is not read in mode {mode!r}; set model.test_cfg.mode=slide too"
        part = key.removeprefix(_CUSTOM_KEYS).split(".")[0]
        if not key.startswith(_CUSTOM_KEYS) or not self.parameter_names:
            return None
        if any(part in name for name in self.parameter_names):
            return None
        parts = {piece for name in self.parameter_names for piece in name.split(".")}
        return f"no parameter has {part!r} in its name{_hint(part, parts)}"

    def _variable(self, top: str, rest: list[str]) -> str:
        """Explain that a variable was used up when the file was read, or that a key is unknown."""
        if top not in self.config:
            near = difflib.get_close_matches(top, [*TOP_LEVEL, *self.config, *_SYNONYMS], n=3)
            names = ", ".join(dict.fromkeys(_SYNONYMS.get(name, name) for name in near))
            return f"nothing reads this key{f'; nearest: {names}' if names else ''}"
        places = [".".join([path, *rest]) for path in self._places(self.config[top])]
        remedy = f"set {' and '.join(places[:6])}" if places else "change the file"
        if "train_cfg.max_iters" in places:
            remedy = f"use {_SYNONYMS['max_iters']}"
        if top in _SYNONYMS:
            remedy = f"use {_SYNONYMS[top]}"
        return f"a variable of the file, which has no effect once the file is read; {remedy}"

    def _places(self, value: Any) -> Iterator[str]:
        """Yield the keys that hold the value of a variable."""
        for top in sorted(TOP_LEVEL & set(self.config)):
            for path, found in _nodes(self.config[top], top):
                if type(found) is type(value) and found == value:
                    yield path


def _is_known(key: str, config: Config) -> bool:
    """Tell whether a config declares a key, or a part above it, in its `known_keys`."""
    return any(key == name or key.startswith(f"{name}.") for name in config.get("known_keys", ()))


def _leaf_keys(options: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield the dotted keys of options whose values may be mappings themselves."""
    for key, value in options.items():
        if isinstance(value, dict) and value:
            yield from _leaf_keys(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def _nodes(node: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yield all parts of a config with their dotted keys, a mapping before its entries."""
    yield path, node
    if isinstance(node, dict):
        for name, value in node.items():
            yield from _nodes(value, f"{path}.{name}")
    elif isinstance(node, list | tuple):
        for index, value in enumerate(node):
            if isinstance(value, dict | list | tuple):
                yield from _nodes(value, f"{path}.{index}")


def _entry(node: Any, name: str) -> Any:
    """Return an entry of a mapping or a list, None where there is none."""
    if isinstance(node, dict):
        return node.get(name)
    if isinstance(node, list | tuple) and name.isdigit() and int(name) < len(node):
        return node[int(name)]
    return None


def _misfit(config: Config, key: str, error: Exception) -> str:
    """Say why an option cannot be merged."""
    node: Any = config._cfg_dict
    path = ""
    for name in key.split("."):
        if isinstance(node, list | tuple) and _entry(node, name) is None:
            return f"{path} is a list with entries 0 to {len(node) - 1}; {name} is not one of them"
        node, path = _entry(node, name), f"{path}.{name}".lstrip(".")
    return f"does not fit the config ({' '.join(str(error).split())[:200]})"


def _hint(name: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(name, sorted(known), n=3)
    return f"; nearest: {', '.join(near)}" if near else ""

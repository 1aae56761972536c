"""Refuse options whose values are of the wrong kind or out of range."""

import math
import re
from collections.abc import Iterator
from typing import Any

from mmengine.config import Config

from cae_seg.engine.precision import EVALUATION_PRECISIONS, PRECISIONS
from cae_seg.errors import UserError

# Range of the values of keys by their last name: pattern, least, most, whether whole numbers alone.
_RANGES: list[tuple[str, float, float, bool]] = [
    (r"lr|max_norm|eps|initial_scale", math.ulp(0.0), math.inf, False),
    (
        r"weight_decay|layer_decay_rate|\w+_mult|min_lr|eta_min|power|loss_weight",
        0,
        math.inf,
        False,
    ),
    (r"\w*prob|\w*drop_(path_)?rate|cat_max_ratio|\w*momentum", 0, 1, False),
    (r"start_factor|end_factor", 0, 1, False),
    (
        r"(val_|log_)?interval|batch_size|total_batch_size|num_classes|depth|\w*embed_dims?",
        1,
        10**9,
        True,
    ),
    (
        r"num_heads|num_layers|patch_size|crop_size|img_size|stride|channels|num_stages",
        1,
        10**9,
        True,
    ),
    (r"begin|end|T_max|val_begin|num_workers|ignore_index|reduce_zero_label", 0, 10**9, True),
]
_CHOICES = {
    "precision": ("auto", *PRECISIONS),
    "evaluation_precision": EVALUATION_PRECISIONS,
    "model.test_cfg.mode": ("slide", "whole", "slide_flip"),
}
_TEXT_OR_NUMBER = ("loss_scale",)


def check_values(config: Config, options: dict[str, Any]) -> None:
    """Refuse values that are of another kind than the config's, or out of range.

    Args:
        config: as read from its file.
        options: dotted keys and their values.

    Raises:
        UserError: naming the key, the value, and what is expected.
    """
    for problem in wrong_values(config, options):
        raise UserError(problem)


def wrong_values(config: Config, options: dict[str, Any]) -> Iterator[str]:
    """Yield a line for each value that cannot be meant, as `check_values` reports it."""
    for key, value in options.items():
        if isinstance(value, dict) and value:
            yield from wrong_values(config, {f"{key}.{name}": part for name, part in value.items()})
        elif expected := _expected(key, value, _find(config, key)):
            yield f"{key}={value}: must be {expected}"


def _expected(key: str, value: Any, before: Any) -> str | None:
    """Return what a value has to be, or None where it is fine."""
    if value is None:
        return None
    if choices := _CHOICES.get(key):
        return None if value in choices else f"one of {', '.join(choices)}"
    name = next((part for part in reversed(key.split(".")) if not part.isdigit()), key)
    return _kind(name, value, before) or _range(name, value)


def _kind(name: str, value: Any, before: Any) -> str | None:
    is_text, is_number = isinstance(value, str), isinstance(value, int | float)
    if name in _TEXT_OR_NUMBER:
        return None
    if isinstance(before, bool):
        return None if isinstance(value, bool) else "True or False"
    if isinstance(before, int | float):
        return "a number" if is_text or isinstance(value, bool) else None
    if isinstance(before, str):
        return "text" if is_number else None
    if isinstance(before, dict):
        return "a mapping, given by its keys" if is_text or is_number else None
    if isinstance(before, list | tuple) and (isinstance(value, bool) or (is_text and before)):
        texts = all(isinstance(entry, str) for entry in before)
        return None if is_text and texts else "a list"
    return None


def _range(name: str, value: Any) -> str | None:
    """Return the range that a number, or each number of a list, is outside of."""
    numbers = [n for n in _numbers(value) if not isinstance(n, bool)]
    if any(math.isnan(number) for number in numbers):
        return "a number"
    if name == "interval" and value == -1:  # how mmengine's hooks are switched off
        return None
    for pattern, least, most, whole in _RANGES:
        if not re.fullmatch(pattern, name):
            continue
        if isinstance(value, str):
            return "a number"
        if all(least <= n <= most and math.isfinite(n) for n in numbers) and not (
            whole and any(n != int(n) for n in numbers)
        ):
            return None
        return _range_text(least, most, whole)
    return None


def _range_text(least: float, most: float, whole: bool) -> str:
    kind = "a whole number" if whole else "a finite number"
    if least == math.ulp(0.0):
        return f"{kind} above 0"
    return f"{kind} from {least:g} to {most:g}" if most == 1 else f"{kind} of at least {least:g}"


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, int | float):
        yield value
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from _numbers(entry)


def _find(config: Config, key: str) -> Any:
    """Return the value that a config has under a dotted key, None where it has none."""
    node: Any = config._cfg_dict
    for name in key.split("."):
        if isinstance(node, dict):
            node = node.get(name)
        elif isinstance(node, list | tuple) and name.isdigit() and int(name) < len(node):
            node = node[int(name)]
        else:
            return None
    return node

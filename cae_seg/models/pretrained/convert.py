"""Checkpoints of any known pretraining → the backbone's state dict, and a report.

`convert` is pure: it looks at the tensors and at the backbone and changes neither. A key inside the
backbone's prefix that is on no list is an error, and so is a backbone that is not filled.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from cae_seg.errors import UserError
from cae_seg.models.pretrained.architectures import Architecture
from cae_seg.models.pretrained.compatibility import tensor_warnings
from cae_seg.models.pretrained.layouts import Layout, Tensors, find_tensors, recognise_layout
from cae_seg.models.pretrained.report import Report, summarise_names
from cae_seg.models.pretrained.values import check_values


@dataclass
class _Log:
    """Names collected for the report."""

    resized: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)


def convert(
    state: Mapping[str, Any], model: nn.Module, *, source: str = "checkpoint"
) -> tuple[Tensors, Report]:
    """Map the contents of a checkpoint to the names and sizes of the backbone.

    Args:
        state: what `load_checkpoint_file` returns.
        model: the backbone to be filled, with its `architecture`.
        source: name of the file for messages.

    Returns:
        The tensors to load, a subset of `model.state_dict()`'s names, and the report.

    Raises:
        UserError: unknown layout, a key that has no place, another width, depth or number of
            heads, or tensors of the backbone missing.
    """
    architecture: Architecture = model.architecture
    tensors = find_tensors(state)
    layout = recognise_layout(tensors, architecture.anchors, source)
    log = _Log()
    inside = _strip_prefix(tensors, layout, log)
    converted, log.resized = fit_tensors(inside, model, log.dropped, source)
    fresh = _missing(converted, model, source)
    report = Report(
        source=source,
        layout=layout.name,
        loaded=tuple(name for name in converted if name not in log.resized),
        resized=tuple(log.resized),
        initialised=tuple(fresh),
        left=tuple(log.left),
        dropped=tuple(log.dropped),
        mean=model.taps.mean if hasattr(model, "taps") else layout.mean,
        warnings=tensor_warnings(inside, model, fresh),
    )
    return converted, report


def fit_tensors(
    tensors: Tensors, model: nn.Module, dropped: list[str], source: str
) -> tuple[Tensors, list[str]]:
    """Translate and resize tensors for a backbone; the names of dropped ones are appended.

    Returns:
        The tensors by the backbone's names, and the names of those that were resized.

    Raises:
        UserError: a tensor has no place in the backbone, or another size.
    """
    translated = _translate(tensors, model, dropped)
    check_values(translated, model.state_dict(), source)
    resized: list[str] = []
    fitted = _adapt_sizes(translated, model, resized, source)
    _check_places(fitted, model, source)
    return fitted, resized


def _strip_prefix(tensors: Tensors, layout: Layout, log: _Log) -> Tensors:
    """Return the tensors under the layout's prefix; note the others."""
    inside = {}
    for name, value in tensors.items():
        if layout.ignored_prefixes and name.startswith(layout.ignored_prefixes):
            log.dropped.append(name)
        elif name.startswith(layout.prefix):
            inside[name.removeprefix(layout.prefix)] = value
        else:
            log.left.append(name)
    return inside


def _translate(tensors: Tensors, model: nn.Module, dropped: list[str]) -> Tensors:
    """Return tensors under the backbone's names, without those that are dropped by design."""
    architecture, target = model.architecture, model.state_dict()
    translated = {}
    for source, name, value in architecture.translate(tensors, model):
        derived = name.endswith(("relative_position_index", "num_batches_tracked"))
        unused = name not in target and architecture.dropped.fullmatch(source)
        if value is None or unused or (derived and name not in target):
            dropped.append(source)
        elif name.endswith("relative_position_index"):
            dropped.append(source)  # follows from the grid
        else:
            translated[name] = value
    return translated


def _adapt_sizes(tensors: Tensors, model: nn.Module, resized: list[str], source: str) -> Tensors:
    """Bring the position embedding and the tables to the backbone's grid."""
    target, adapted = model.state_dict(), {}
    for name, value in tensors.items():
        wanted = target.get(name)
        if wanted is not None and value.shape != wanted.shape:
            value = _resized(name, value, wanted, model, source)
            resized.append(name)
        adapted[name] = value
    return adapted


def _resized(name: str, value: Tensor, wanted: Tensor, model: nn.Module, source: str) -> Tensor:
    comparable = value.ndim == wanted.ndim and value.numel()
    resized = model.architecture.resize(name, value, model) if comparable else None
    if resized is None or resized.shape != wanted.shape:
        raise UserError(
            f"{source}: {name} is {tuple(value.shape)}, the backbone's is "
            f"{tuple(wanted.shape)}; {_shape_hint(name)}"
        )
    return resized


def _shape_hint(name: str) -> str:
    if name.endswith("relative_position_bias_table"):
        return "take the config of this checkpoint's number of heads (num_heads) and image size"
    return "take the config of this checkpoint's architecture (embed_dim, patch_size)"


def _check_places(tensors: Tensors, model: nn.Module, source: str) -> None:
    target = model.state_dict()
    unexpected = [name for name in tensors if name not in target]
    if unexpected:
        raise UserError(
            f"{source}: {summarise_names(unexpected)} {'has' if len(unexpected) == 1 else 'have'} "
            "no place in the backbone; take the config of this checkpoint's architecture (depth, "
            "qkv_bias, use_rel_pos_bias, use_sincos_pos_embed), or see docs/checkpoints.md"
        )


def _missing(tensors: Tensors, model: nn.Module, source: str) -> list[str]:
    """Return the names that keep their start values; raise where the backbone is not filled."""
    absent = [
        name
        for name in model.state_dict()
        if name not in tensors and not name.endswith(("_index", "num_batches_tracked"))
    ]
    unfilled, fresh = [], []
    for name in absent:
        (fresh if _is_optional(name, tensors, model.architecture) else unfilled).append(name)
    if unfilled:
        raise UserError(
            f"{source}: does not fill the backbone: {summarise_names(unfilled)} missing; take the "
            "config of this checkpoint's architecture, or the whole checkpoint"
        )
    return fresh


def _is_optional(name: str, tensors: Tensors, architecture: Architecture) -> bool:
    """Tell whether a kind of tensor may keep its start values: missing as a whole only."""
    for pattern in architecture.optional.values():
        if pattern.fullmatch(name):
            return not any(pattern.fullmatch(other) for other in tensors)
    return False

"""Published fine-tuned segmentors, under the names of their own code, into a model.

CAE's and the zoo's names are the model's. Other systems keep pyramid and heads elsewhere or under
other names: tables by the class of the neck or head that is filled.
"""

import re
from collections.abc import Mapping
from typing import Any

from mmseg.models.necks import Feature2Pyramid, MLANeck
from torch import Tensor, nn

from cae_seg.errors import UserError
from cae_seg.models.pretrained.layouts import Tensors, find_tensors

Rules = tuple[tuple[str, str], ...]

_PYRAMID_LEVELS = {
    4: "upsample_4x",
    2: "upsample_2x",
    1: "identity",
    0.5: "downsample_2x",
    0.25: "downsample_4x",
}
_UNUSED_CLASSIFIER = re.compile(r"conv_seg\.(weight|bias)")  # of SETR: never used in a forward pass


def load_published(
    model: nn.Module, state: Mapping[str, Any], *, source: str = "checkpoint"
) -> list[str]:
    """Fill a whole segmentor from published fine-tuned weights.

    Args:
        model: segmentor of mmsegmentation's `EncoderDecoder` kind.
        state: contents of the file, with or without a container around the tensors.
        source: name of the file for messages.

    Returns:
        Names of tensors that were dropped by design.

    Raises:
        UserError: a tensor is missing, has no place, or has another size; the model is unchanged.
    """
    tensors, dropped = find_tensors(state), []
    if not _has_own_names(tensors, model):
        tensors = to_model_names(tensors, model, dropped)
    _check(tensors, model, source)
    model.load_state_dict(tensors, strict=False)
    return dropped


def _is_derived(name: str) -> bool:
    return name.endswith(("relative_position_index", "num_batches_tracked"))


def _has_own_names(tensors: Tensors, model: nn.Module) -> bool:
    own = {name for name in model.state_dict() if not _is_derived(name)}
    return own == {name for name in tensors if not _is_derived(name)}


def _check(tensors: Tensors, model: nn.Module, source: str) -> None:
    own = model.state_dict()
    hint = "take the config these weights were trained with"
    for name, value in own.items():
        if name not in tensors:
            if not _is_derived(name):
                raise UserError(f"{source}: {name} is missing; {hint}")
        elif tensors[name].shape != value.shape:
            sizes = f"{tuple(tensors[name].shape)}, not {tuple(value.shape)}"
            raise UserError(f"{source}: {name} is {sizes}; {hint}")
    for name in tensors:
        if name not in own:
            raise UserError(f"{source}: {name} has no place in the model; {hint}")


def to_model_names(tensors: Tensors, model: nn.Module, dropped: list[str]) -> Tensors:
    """Return published tensors under the model's names; names of dropped ones are appended."""
    parts: dict[str, Tensors] = {}
    translated: Tensors = {}
    for name, value in tensors.items():
        prefix = re.match(r"(auxiliary_head\.\d+|\w+)\.", name)
        if prefix is None:  # no part of a segmentor; refused by its name later
            translated[name] = value
        else:
            parts.setdefault(prefix[0], {})[name.removeprefix(prefix[0])] = value
    for prefix, part in parts.items():
        if prefix == "backbone.":
            translated |= _translate_backbone(part, model, dropped)
        else:
            translated |= _translate_head(prefix, part, model, dropped)
    return translated


def _translate_backbone(tensors: Tensors, model: nn.Module, dropped: list[str]) -> Tensors:
    own = model.backbone.state_dict()
    rules = _neck_rules(getattr(model, "neck", None))
    result, inside = {}, {}
    for name, value in tensors.items():
        renamed = _rename(name, rules)
        if renamed == name:
            inside[name] = value
        else:
            result[f"neck.{renamed}"] = value
    architecture = getattr(model.backbone, "architecture", None)
    if architecture is None:
        return result | {f"backbone.{name}": value for name, value in inside.items()}
    for source, name, value in architecture.translate(inside, model.backbone):
        if value is None or (_is_derived(name) and name not in own):
            dropped.append(f"backbone.{source}")
        elif not name.endswith("relative_position_index"):
            result[f"backbone.{name}"] = value
    return result


def _neck_rules(neck: nn.Module | None) -> Rules:
    """Return how names of a published backbone become those of a neck of ours."""
    if isinstance(neck, Feature2Pyramid):
        levels = (_PYRAMID_LEVELS[scale] for scale in neck.rescales)
        return tuple((rf"^fpn{i}\.", f"{level}.") for i, level in enumerate(levels, start=1))
    if isinstance(neck, MLANeck):
        rules = [(r"^norm_(\d)\.", r"norm.\1.")]
        for level in range(2, 6):  # the neck's outputs, and so `feat_extract`, run from deep on
            for i, part in enumerate(("conv", "bn")):
                shallow, deep = f"channel_proj.{level - 2}", f"feat_extract.{5 - level}"
                rules.append((rf"^mla\.mla_p{level}_1x1\.{i}\.", f"mla.{shallow}.{part}."))
                rules.append((rf"^mla\.mla_p{level}\.{i}\.", f"mla.{deep}.{part}."))
        return tuple(rules)
    return ()


def _rename(name: str, rules: Rules) -> str:
    for pattern, replacement in rules:
        renamed = re.sub(pattern, replacement, name)
        if renamed != name:
            return renamed
    return name


def _translate_head(prefix: str, tensors: Tensors, model: nn.Module, dropped: list[str]) -> Tensors:
    try:
        head = model.get_submodule(prefix.removesuffix("."))
    except AttributeError:
        return {prefix + name: value for name, value in tensors.items()}
    rules = _head_rules(head)
    if rules:
        dropped.extend(prefix + name for name in tensors if _UNUSED_CLASSIFIER.fullmatch(name))
        tensors = {n: v for n, v in tensors.items() if not _UNUSED_CLASSIFIER.fullmatch(n)}
    translated = {_rename(name, rules): value for name, value in tensors.items()}
    if type(head).__name__ == "SETRUPHead":
        translated = _fold_biases(translated)
    return {prefix + name: value for name, value in translated.items()}


def _head_rules(head: nn.Module) -> Rules:
    kind = type(head).__name__
    if kind == "SETRUPHead":
        rules = [(rf"^conv_{len(head.up_convs)}\.", "conv_seg.")]
        rules += [(r"^conv_(\d)\.", r"up_convs.\1.0.conv.")]
        return (*rules, (r"^syncbn_fc_(\d)\.", r"up_convs.\1.0.bn."))
    if kind == "MLAHead":
        rules = [(r"^cls\.", "conv_seg.")]
        for level in range(2, 6):
            for i, part in {0: "0.conv", 1: "0.bn", 3: "1.conv", 4: "1.bn"}.items():
                source = rf"^mlahead\.head{level}\.{i}\."
                rules.append((source, f"up_convs.{level - 2}.{part}."))
        return tuple(rules)
    if kind == "MLAAuxiliaryHead":
        return ((r"^aux\.", "conv_seg."),)
    return ()


def _fold_biases(tensors: Tensors) -> Tensors:
    """Move the bias of a convolution before a batch norm into the norm's running mean."""
    folded: Tensors = dict(tensors)
    for name in tensors:
        if re.fullmatch(r"up_convs\.\d\.0\.conv\.bias", name):
            bias: Tensor = folded.pop(name)
            mean = name.replace("conv.bias", "bn.running_mean")
            folded[mean] = folded[mean] - bias
    return folded

"""How tensors under published names fill each class of backbone.

An `Architecture` is tables and pure functions: what becomes of a name, of a size, what has no use
and what need not be there. Backbones carry theirs as the attribute `architecture`.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from cae_seg.models.pretrained.layouts import ANCHORS, Tensors
from cae_seg.models.pretrained.resize import (
    resize_bias_table,
    resize_geometric_bias_table,
    resize_position_embedding,
)

# Name in the file, name in the backbone, and the tensor; None for a part that is dropped.
Translated = Iterator[tuple[str, str, Tensor | None]]


@dataclass(frozen=True)
class Architecture:
    """What a class of backbone makes of tensors under published names.

    Args:
        translate: maps tensors of the file to names of the backbone.
        resize: returns a tensor that depends on the grid at the backbone's size, else None.
        dropped: names of pretraining tasks and classifiers that are dropped by design.
        optional: kinds of tensors that keep their start values where the file has none of a kind.
        anchors: names of which one marks the prefix of the backbone.
    """

    translate: Callable[[Tensors, nn.Module], Translated]
    resize: Callable[[str, Tensor, nn.Module], Tensor | None]
    dropped: re.Pattern[str]
    optional: Mapping[str, re.Pattern[str]]
    anchors: tuple[str, ...] = ANCHORS


CLASSIFIERS = (
    r"(norm|fc_norm)\.(weight|bias)"  # final norms
    r"|(head|head_dist|lm_head|head_drop|pre_logits)\..*"
    r"|dist_token|mask_token|masked_embed"
    r"|(decoder|decoder_\w+|teacher|pretext_neck|encoder_to_decoder\w*)(\..*)?"  # MAE, CAE
    r"|(.*\.)?(relative_position_index|attn_mask)"  # follow from the grid
)


def _rename(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


# --- CAE, BEiT, MAE, iBOT: class CAE --------------------------------------------------------------

_LAYER_SCALE = ((r"\.ls([12])\.gamma$", r".gamma_\1"),)  # timm's name


def _translate_vit(tensors: Tensors, model: nn.Module) -> Translated:
    """Split fused biases and hand a shared table to each block."""
    target = model.state_dict()
    tables = [key for key in target if re.fullmatch(r"blocks\..*_bias_table", key)]
    for source, value in tensors.items():
        name = _rename(source, _LAYER_SCALE)
        if name.endswith("attn.qkv.bias") and name.replace("qkv.bias", "q_bias") in target:
            query, _, values = value.chunk(3)
            attention = name.removesuffix("qkv.bias")
            yield source, attention + "q_bias", query
            yield source, attention + "v_bias", values
            yield f"{name}[key]", "", None  # the soft-max cancels it
        elif name == "rel_pos_bias.relative_position_bias_table" and name not in target:
            for table in tables or [name]:
                yield source, table, value
        else:
            yield source, name, value


def _resize_vit(name: str, value: Tensor, model: nn.Module) -> Tensor | None:
    if name == "pos_embed" and value.dim() == 3:
        return resize_position_embedding(value, model.grid_size)
    if name.endswith("relative_position_bias_table") and value.dim() == 2:
        return resize_geometric_bias_table(value, model.grid_size)
    return None


VIT = Architecture(
    _translate_vit,
    _resize_vit,
    # The soft-max cancels a bias of the key; a backbone may be built without its pyramid.
    dropped=re.compile(CLASSIFIERS + r"|blocks\.\d+\.attn\.k_bias|fpn\d\..*"),
    optional={
        "position embedding": re.compile(r"pos_embed"),  # sine-cosine, or trained from scratch
        "pyramid": re.compile(r"fpn\d\..*"),
        "relative position tables": re.compile(r".*relative_position_bias_table"),
        "layer scale": re.compile(r"blocks\.\d+\.gamma_[12]"),
        "final norm": re.compile(r"norm\.(weight|bias)"),
    },
)

# --- Swin: mmsegmentation's SwinTransformer -------------------------------------------------------

_SWIN_NAMES = (
    (r"^patch_embed\.proj\.", "patch_embed.projection."),
    (r"^layers\.", "stages."),
    (r"\.attn\.(?!w_msa)", ".attn.w_msa."),
    (r"\.mlp\.fc1\.", ".ffn.layers.0.0."),
    (r"\.mlp\.fc2\.", ".ffn.layers.1."),
)


def _merged_patches(value: Tensor) -> Tensor:
    """Reorder the last axis from four pixels × C channels to C channels × four pixels.

    Published patch merging concatenates the pixels (0,0), (1,0), (0,1), (1,1); `nn.Unfold` walks
    (0,0), (0,1), (1,0), (1,1) within each channel.
    """
    pixels = value.unflatten(-1, (4, -1))[..., [0, 2, 1, 3], :]
    return pixels.transpose(-1, -2).flatten(-2).contiguous()


def _translate_swin(tensors: Tensors, model: nn.Module) -> Translated:
    for source, value in tensors.items():
        name = _rename(source, _SWIN_NAMES)
        merging = source.startswith("layers.") and ".downsample." in source
        yield source, name, _merged_patches(value) if merging else value


def _resize_swin(name: str, value: Tensor, model: nn.Module) -> Tensor | None:
    wanted = model.state_dict()[name].shape
    if name == "absolute_pos_embed" and value.dim() == 3:
        side = round(wanted[1] ** 0.5)
        return resize_position_embedding(value, (side, side), class_token=False)
    if name.endswith("relative_position_bias_table"):
        return resize_bias_table(value, wanted[0])
    return None


SWIN = Architecture(
    _translate_swin,
    _resize_swin,
    dropped=re.compile(CLASSIFIERS),
    optional={"norms of the taps": re.compile(r"norm\d\.(weight|bias)")},
)

# --- SETR, DeiT, ViT: mmsegmentation's VisionTransformer ------------------------------------------

_MMSEG_VIT_NAMES = (
    (r"^patch_embed\.proj\.", "patch_embed.projection."),
    (r"^blocks\.", "layers."),
    (r"^norm\.", "ln1."),
    (r"^(layers\.\d+)\.norm([12])\.", r"\1.ln\2."),
    (r"\.mlp\.fc1\.", ".ffn.layers.0.0."),
    (r"\.mlp\.fc2\.", ".ffn.layers.1."),
    (r"\.attn\.qkv\.(weight|bias)$", r".attn.attn.in_proj_\1"),
    (r"\.attn\.proj\.", ".attn.attn.out_proj."),
)


def _translate_mmseg_vit(tensors: Tensors, model: nn.Module) -> Translated:
    for source, value in tensors.items():
        yield source, _rename(source, _MMSEG_VIT_NAMES), value


def _resize_mmseg_vit(name: str, value: Tensor, model: nn.Module) -> Tensor | None:
    if name != "pos_embed" or value.dim() != 3:
        return None
    height, width = (side // model.patch_size for side in model.img_size)
    return resize_position_embedding(value, (height, width), mode=model.interpolate_mode)


MMSEG_VIT = Architecture(
    _translate_mmseg_vit,
    _resize_mmseg_vit,
    dropped=re.compile(CLASSIFIERS),
    optional={"final norm": re.compile(r"ln1\.(weight|bias)")},
)

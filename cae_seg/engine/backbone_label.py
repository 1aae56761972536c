"""What published name the backbone of a config has, to tell a row that is labelled otherwise."""

import re
from collections.abc import Mapping
from typing import Any

_VIT_WIDTHS = {192: "ViT-Ti", 384: "ViT-S", 768: "ViT-B", 1024: "ViT-L", 1280: "ViT-H"}
_VIT_TYPES = ("CAE", "CAEBlocks", "ViTBackbone", "VisionTransformer", "BEiT", "MAE")
_SWIN_SIZES = {(96, 6): "Swin-T", (96, 18): "Swin-S", (128, 18): "Swin-B", (192, 18): "Swin-L"}
_SWIN_TYPES = ("SwinTransformer", "SwinBackbone")
_SIZED = {*_VIT_WIDTHS.values(), *_SWIN_SIZES.values()}
_TIMM_SIZES = {"tiny": "T", "small": "S", "base": "B", "large": "L", "huge": "H"}
_FAMILY = re.compile(r"(ViT|Swin|XCiT|ResNet)-")


def contradicts(label: str, backbone: Mapping[str, Any]) -> str | None:
    """Return what a backbone is where a row's label says otherwise; None where it does not.

    Labels that are no published name (`Mine`, `DINOv3-B`) contradict nothing, nor do any where the
    backbone is of a type that is not known here. What follows a slash, the patch size, is not
    compared.

    Args:
        label: backbone as a row of a sheet names it.
        backbone: its config.
    """
    label = label.split("/")[0]
    if backbone.get("type") == "Frozen":
        backbone = backbone["backbone"]
    built = published_name(backbone)
    if built is not None:
        return built if _FAMILY.match(label) and label != built else None
    width = backbone.get("embed_dim") or backbone.get("embed_dims")
    if label in _SIZED and width and _kind(backbone) in (*_VIT_TYPES, *_SWIN_TYPES):
        return f"a {_kind(backbone)} of width {width}"
    return None


def published_name(backbone: Mapping[str, Any]) -> str | None:
    """Return ViT-B, Swin-T, ResNet-50 and the like for the config of a backbone of that size."""
    kind = _kind(backbone)
    if kind == "TimmModel":
        return _timm_name(backbone["model_name"])
    if kind in _VIT_TYPES:
        return _VIT_WIDTHS.get(backbone.get("embed_dim") or backbone.get("embed_dims"))
    if kind in _SWIN_TYPES and len(backbone.get("depths", ())) == 4:
        return _SWIN_SIZES.get((backbone.get("embed_dims"), backbone["depths"][2]))
    if kind in ("ResNet", "ResNetV1c", "ResNetV1d") and backbone.get("depth"):
        return f"ResNet-{backbone['depth']}"
    return None


def _kind(backbone: Mapping[str, Any]) -> str:
    return str(backbone.get("type")).split(".")[-1]


def _timm_name(model: str) -> str | None:
    if found := re.match(r"(vit|deit3?|beit(?:v2)?|swin)_(tiny|small|base|large|huge)_", model):
        family, size = found.groups()
        if family == "swin":
            return f"Swin-{_TIMM_SIZES[size]}"
        return "ViT-Ti" if size == "tiny" else f"ViT-{_TIMM_SIZES[size]}"
    found = re.match(r"resnet(\d+)(?!\w)", model)
    return f"ResNet-{found[1]}" if found else None

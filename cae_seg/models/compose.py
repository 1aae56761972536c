"""Put a model config together from a backbone's name, a head's name, and whether it is trained.

A recipe (schedule, data, loss) comes from a config file; this replaces its backbone by a timm
model, its head by another, or freezes the backbone, and sets every size that follows.
"""

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cae_seg.errors import UserError
from cae_seg.models.backbones.cae import CAE
from cae_seg.models.backbones.timm import probe_timm

HEADS = ("upernet", "linear", "linear_4", "setr_naive", "setr_pup", "setr_mla", "fcn")
_CHANNELS = {"upernet": 512, "fcn": 256, "setr_naive": 256, "setr_pup": 256, "setr_mla": 512}
# Of which stride a plain vision transformer's maps become 4, 8, 16 and 32 or about.
_RESCALES = {8: [2, 1, 0.5, 0.25], 14: [4, 2, 1, 0.5], 16: [4, 2, 1, 0.5]}


@dataclass(frozen=True)
class Maps:
    """The maps that a backbone hands to neck or head.

    Args:
        channels: of each map, finest first.
        strides: pixels of the image per pixel of each map.
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def is_flat(self) -> bool:
        """Whether all maps have the same stride, as in plain vision transformers."""
        return len(set(self.strides)) == 1


def compose_model(
    model: Mapping[str, Any],
    *,
    timm: str | None = None,
    head: str | Mapping[str, Any] | None = None,
    frozen: bool = False,
    class_weights: Sequence[float] | None = None,
) -> dict[str, Any]:
    """Return a model config with another backbone or head.

    Args:
        model: config of a segmentor; its crop size, classes, norm and loss are kept.
        timm: name of a timm model that becomes the backbone.
        head: one of `HEADS`, or the model of a config whose heads and neck are taken; upernet for a
            timm model where None.
        frozen: train neck and head only.
        class_weights: of the losses of all heads, one for each class.

    Raises:
        UserError: no such model or head, or a head that the backbone cannot feed.
    """
    model = copy.deepcopy(dict(model))
    if timm is not None:
        maps = _set_timm(model, timm, _taps(head))
        _set_head(model, head or "upernet", maps)
    elif head is not None and not (head == "upernet" and _has_upernet(model)):
        _set_head(model, head, _maps_of(model, _taps(head)))
    elif frozen and model["backbone"]["type"] == "CAE" and not model.get("neck"):
        # No pretraining fills its pyramid, which is trained then, as a neck.
        model["neck"] = _pyramid(_maps_of(model, None), _with_norm(model["decode_head"]))
    if frozen and model["backbone"]["type"] != "Frozen":
        init_cfg = model["backbone"].pop("init_cfg", None)
        model["backbone"] = {"type": "Frozen", "backbone": model["backbone"]}
        if init_cfg:
            model["backbone"]["init_cfg"] = init_cfg
    if class_weights is not None:
        _set_class_weights(model, class_weights)
    return model


def _set_class_weights(model: dict[str, Any], weights: Sequence[float]) -> None:
    for key in ("decode_head", "auxiliary_head"):
        heads = model.get(key) or []
        for head in heads if isinstance(heads, list | tuple) else [heads]:
            losses = head["loss_decode"]
            for loss in losses if isinstance(losses, list | tuple) else [losses]:
                loss["class_weight"] = list(weights)


def take_choice(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Remove the choice of a model from a mapping, where it is made: `timm`, `head`, …

    Args:
        values: changed in place.
        prefix: of the keys in the mapping.

    Raises:
        UserError: `frozen` is neither True nor False.
    """
    names = ("timm", "head", "frozen", "class_weights")
    choice = {name: values.pop(prefix + name) for name in names if prefix + name in values}
    if choice.get("frozen", False) not in (True, False):
        raise UserError(f"{prefix}frozen: {choice['frozen']!r} is neither True nor False")
    return {name: value for name, value in choice.items() if value is not None}


def _has_upernet(model: dict[str, Any]) -> bool:
    return model["decode_head"]["type"].endswith("UPerHead")


def _taps(head: str | Mapping[str, Any] | None) -> Callable[[int], tuple[int, ...]] | None:
    """Return which blocks of a plain vision transformer a head reads, by its depth."""
    if head == "linear":
        return lambda depth: (depth - 1,)
    if head == "linear_4":
        return lambda depth: tuple(range(max(depth - 4, 0), depth))
    return None


def _set_timm(
    model: dict[str, Any], name: str, taps: Callable[[int], tuple[int, ...]] | None
) -> Maps:
    """Make a timm model the backbone, with its own normalisation of images."""
    size = _pair(model["data_preprocessor"].get("size") or (512, 512))
    found = probe_timm(name, size)
    backbone = {"type": "TimmModel", "model_name": name, "img_size": size}
    if taps is not None and len(set(found.strides)) == 1:
        found = probe_timm(name, size, taps(found.depth))
        backbone["out_indices"] = list(found.indices)
    for key in ("drop_path_rate", "init_cfg"):
        if model["backbone"].get(key):
            backbone[key] = model["backbone"][key]
    model["backbone"] = backbone
    model["data_preprocessor"].update(mean=list(found.mean), std=list(found.std), bgr_to_rgb=True)
    return Maps(found.channels, tuple(round(stride) for stride in found.strides))


def _maps_of(model: dict[str, Any], taps: Callable[[int], tuple[int, ...]] | None) -> Maps:
    """Return the maps of a config's own backbone; CAE's are taken before its pyramid."""
    backbone = model["backbone"]
    backbone = backbone["backbone"] if backbone["type"] == "Frozen" else backbone
    if backbone["type"] == "CAE":
        backbone["type"] = "CAEBlocks"
        arguments = inspect.signature(CAE).parameters
        for name in ("depth", "embed_dim", "patch_size", "out_indices"):
            backbone.setdefault(name, arguments[name].default)
        if taps is not None:
            backbone["out_indices"] = list(taps(backbone["depth"]))
        count = len(backbone["out_indices"])
        return Maps((backbone["embed_dim"],) * count, (backbone["patch_size"],) * count)
    if backbone["type"] == "ViTBackbone":
        if taps is not None:
            backbone["out_indices"] = list(taps(backbone["num_layers"]))
        count = len(backbone["out_indices"])
        return Maps((backbone["embed_dims"],) * count, (backbone.get("patch_size", 16),) * count)
    if backbone["type"] == "SwinBackbone":
        count = len(backbone["depths"])
        widths = tuple(backbone["embed_dims"] * 2**i for i in range(count))
        return Maps(widths, tuple(4 * 2**i for i in range(count)))
    raise UserError(
        f"head: another head for the backbone {backbone['type']} is not supported; give a config "
        "with the head, or a timm model"
    )


def _set_head(model: dict[str, Any], head: str | Mapping[str, Any], maps: Maps) -> None:
    """Replace neck and heads; classes, norm and loss stay."""
    if isinstance(head, Mapping):
        _set_head_of(model, copy.deepcopy(dict(head)), maps)
        return
    if head not in HEADS:
        raise UserError(f"head: {head}: no such head; choose one of {', '.join(HEADS)}")
    needed = 1 if head.startswith("linear") else 4
    if len(maps.channels) < needed:
        raise UserError(f"head: {head} needs four maps, the backbone has {len(maps.channels)}")
    if head.startswith("setr") and not maps.is_flat:
        raise UserError(f"head: {head} needs a plain vision transformer; choose upernet or linear")
    old = model["decode_head"]
    shared = {
        "num_classes": old["num_classes"],
        "norm_cfg": old.get("norm_cfg") or {"type": "SyncBN", "requires_grad": True},
        "loss_decode": old["loss_decode"],
    }
    neck, decode, auxiliary = _BUILDERS[head](maps, shared)
    model.pop("neck", None)
    if neck is not None:
        model["neck"] = neck
    model["decode_head"], model["auxiliary_head"] = decode, auxiliary


def _set_head_of(model: dict[str, Any], source: dict[str, Any], maps: Maps) -> None:
    """Take neck and heads of another model, with the channels of these maps."""
    classes = model["decode_head"]["num_classes"]
    neck, decode = source.get("neck"), source.get("decode_head")
    auxiliary = source.get("auxiliary_head")
    if decode is None:
        raise UserError("head: the config has no model.decode_head; name one that has")
    heads = [
        head
        for part in (decode, auxiliary)
        for head in (part if isinstance(part, list | tuple) else [part])
        if head
    ]
    last = decode[-1] if isinstance(decode, list | tuple) else decode
    if neck is None and len(_indices(last)) == 4:
        neck = _pyramid(maps, _with_norm(decode))
    elif neck is not None:
        own = {"in_channels": list(maps.channels), "embed_dim": maps.channels[0]}
        neck.update({key: value for key, value in own.items() if key in neck})
    for head in heads:
        head["num_classes"] = classes
        if "out_channels" not in (neck or {}):
            channels = _channels_of(head, maps)
            head["in_channels"] = channels if _reads_several(head) else channels[0]
    model.pop("neck", None)
    if neck is not None:
        model["neck"] = neck
    model["decode_head"], model["auxiliary_head"] = decode, auxiliary


def _with_norm(decode: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the norm of a head, or of the last one of a cascade, as the heads share it."""
    last = decode[-1] if isinstance(decode, list | tuple) else decode
    return {"norm_cfg": last.get("norm_cfg") or {"type": "SyncBN"}}


def _indices(head: Mapping[str, Any]) -> list[int]:
    """Return the maps that a head reads."""
    index = head.get("in_index", -1)
    return list(index) if isinstance(index, list | tuple) else [index]


def _reads_several(head: Mapping[str, Any]) -> bool:
    return isinstance(head.get("in_index", -1), list | tuple)


def _channels_of(head: Mapping[str, Any], maps: Maps) -> list[int]:
    try:
        return [maps.channels[index] for index in _indices(head)]
    except IndexError as error:
        raise UserError(
            f"head: {head['type']} reads map {max(_indices(head)) + 1}, the backbone has "
            f"{len(maps.channels)}"
        ) from error


def _upernet(maps: Maps, shared: dict[str, Any]) -> tuple[dict | None, dict, Any]:
    decode = shared | {
        "type": "UPerHead",
        "in_channels": list(maps.channels),
        "in_index": [0, 1, 2, 3],
        "pool_scales": (1, 2, 3, 6),
        "channels": _CHANNELS["upernet"],
        "dropout_ratio": 0.1,
        "align_corners": False,
    }
    return _pyramid(maps, shared), decode, _fcn_head(maps, shared, 2, 0.4)


def _fcn(maps: Maps, shared: dict[str, Any]) -> tuple[dict | None, dict, Any]:
    return None, _fcn_head(maps, shared, len(maps.channels) - 1, 1.0), None


def _linear(maps: Maps, shared: dict[str, Any]) -> tuple[dict | None, dict, Any]:
    last = len(maps.channels) - 1
    where = {"in_channels": maps.channels[last], "in_index": last}
    return None, shared | {"type": "LinearHead", **where}, None


def _linear_4(maps: Maps, shared: dict[str, Any]) -> tuple[dict | None, dict, Any]:
    indices = list(range(len(maps.channels)))
    where = {"in_channels": list(maps.channels), "in_index": indices}
    return None, shared | {"type": "LinearHead", **where}, None


def _setr_up(progressive: bool, maps: Maps, shared: dict[str, Any]) -> tuple[None, dict, list]:
    common = shared | {
        "type": "SETRUPHead",
        "in_channels": maps.channels[-1],
        "channels": _CHANNELS["setr_pup" if progressive else "setr_naive"],
        "kernel_size": 3 if progressive else 1,
        "num_convs": 1,
        "dropout_ratio": 0,
        "align_corners": False,
    }
    first = {"num_convs": 4, "up_scale": 2} if progressive else {"up_scale": 1}
    others = [
        common
        | {"in_index": i, "up_scale": 4 if progressive else 1}
        | {"loss_decode": shared["loss_decode"] | {"loss_weight": 0.4}}
        for i in range(4 if progressive else 3)
    ]
    return None, common | {"in_index": 3} | first, others


def _setr_mla(maps: Maps, shared: dict[str, Any]) -> tuple[dict, dict, list]:
    width = 256
    neck = {
        "type": "MLANeck",
        "in_channels": list(maps.channels),
        "out_channels": width,
        "norm_cfg": shared["norm_cfg"],
        "act_cfg": {"type": "ReLU"},
    }
    decode = shared | {
        "type": "MLAHead",
        "in_channels": [width] * 4,
        "in_index": [3, 2, 1, 0],  # the neck returns the deepest map first
        "channels": _CHANNELS["setr_mla"],
        "mla_channels": _CHANNELS["setr_mla"] // 4,
        "dropout_ratio": 0,
    }
    auxiliary = {
        "type": "MLAAuxiliaryHead",
        "in_channels": width,
        "num_classes": shared["num_classes"],
        "loss_decode": shared["loss_decode"] | {"loss_weight": 0.4},
    }
    return neck, decode, [auxiliary | {"in_index": i} for i in (3, 2, 1, 0)]


_BUILDERS: dict[str, Callable[[Maps, dict[str, Any]], tuple[dict | None, dict, Any]]] = {
    "upernet": _upernet,
    "fcn": _fcn,
    "linear": _linear,
    "linear_4": _linear_4,
    "setr_naive": lambda maps, shared: _setr_up(False, maps, shared),
    "setr_pup": lambda maps, shared: _setr_up(True, maps, shared),
    "setr_mla": _setr_mla,
}


def _pyramid(maps: Maps, shared: dict[str, Any]) -> dict | None:
    """Return the neck that brings maps of one stride to four."""
    if not maps.is_flat:
        return None
    stride = maps.strides[0]
    if stride not in _RESCALES:
        known = ", ".join(map(str, _RESCALES))
        raise UserError(f"head: upernet has no pyramid for patches of {stride}; only for {known}")
    return {
        "type": "Feature2Pyramid",
        "embed_dim": maps.channels[0],
        "rescales": _RESCALES[stride],
        "norm_cfg": shared["norm_cfg"],
    }


def _fcn_head(maps: Maps, shared: dict[str, Any], index: int, weight: float) -> dict:
    return shared | {
        "type": "FCNHead",
        "in_channels": maps.channels[index],
        "in_index": index,
        "channels": _CHANNELS["fcn"],
        "num_convs": 1,
        "concat_input": False,
        "dropout_ratio": 0.1,
        "align_corners": False,
        "loss_decode": shared["loss_decode"] | {"loss_weight": weight},
    }


def _pair(size: int | Sequence[int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else tuple(size)

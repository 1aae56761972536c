"""Any timm model as a backbone: taps, final norm, padding to whole patches, layer ids, weights.

The model keeps timm's parameter names under `model.`. What it returns is probed once on the meta
device, which costs no memory: channels and strides of the taps, and the parameters that no tap
depends on.
"""

import dataclasses
import difflib
import functools
import inspect
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import timm
import torch
from mmengine.model import BaseModule
from mmseg.registry import MODELS
from timm.models import group_parameters, model_entrypoint
from torch import Tensor, nn
from torch.nn import functional as F

from cae_seg.errors import UserError
from cae_seg.models.layers.batch_norm import synchronise_batch_norms
from cae_seg.models.pretrained.architectures import CLASSIFIERS, Architecture, Translated
from cae_seg.models.pretrained.layouts import ANCHORS, Tensors
from cae_seg.models.pretrained.load import FilledFromCheckpoint


@dataclass(frozen=True)
class Taps:
    """What a timm model gives to a neck or head.

    Args:
        model_name: of the model.
        img_size: height and width that the model is built for, in pixels.
        patch: sides of images are padded to multiples of it; 1 where the model takes any side.
        indices: which of the model's features, from 0.
        depth: number of the model's features.
        norm: whether the final norm is applied to each tap.
        mean: of the normalisation of the images, per channel, in grey levels 0 to 255.
        std: likewise.
        channels: of each tap.
        strides: pixels of the image per pixel of each tap.
        unused: parameters that no tap depends on.
        pruned: names of the whole model that the taps do not need.
    """

    model_name: str
    img_size: tuple[int, int]
    patch: int
    indices: tuple[int, ...]
    depth: int
    norm: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]
    channels: tuple[int, ...] = ()
    strides: tuple[float, ...] = ()
    unused: frozenset[str] = frozenset()
    pruned: frozenset[str] = frozenset()


def default_indices(strides: Sequence[int], count: int = 4) -> tuple[int, ...]:
    """Return the features to tap, by the strides of all features of a model.

    The last feature of each of the last `count` strides; where all strides are equal, the blocks
    at 1/3, 1/2, 2/3 of the depth and the last one (3, 5, 7, 11 of 12, as CAE and BEiT).
    """
    depth = len(strides)
    last = {stride: i for i, stride in enumerate(strides)}
    if len(last) > 1:
        return tuple(sorted(last.values())[-count:])
    if depth < count:
        return tuple(range(depth))
    return (depth // 3 - 1, depth // 2 - 1, 2 * depth // 3 - 1, depth - 1)


@functools.lru_cache(maxsize=64)
def probe_timm(
    name: str,
    img_size: tuple[int, int],
    indices: tuple[int, ...] | None = None,
    norm: bool | None = None,
    options: tuple[tuple[str, Any], ...] = (),
) -> Taps:
    """Build a timm model on the meta device and see what its taps are.

    Args:
        name: of the model, with or without the tag of pretrained weights.
        img_size: height and width of the images in pixels; rounded up to whole patches.
        indices: features to tap; `default_indices` where None.
        norm: apply the final norm to each tap; where all strides are equal if None.
        options: further arguments of the model.

    Raises:
        UserError: no such model, or one that cannot work as a backbone.
    """
    with torch.device("meta"), torch.enable_grad():
        model, size, strides = _create_for(name, img_size, dict(options))
        flat = len(set(strides)) == 1
        whole = set(model.state_dict())
        taps = Taps(
            model_name=name,
            img_size=size,
            patch=strides[0] if flat else 1,
            indices=default_indices(strides) if indices is None else indices,
            depth=len(strides),
            norm=flat if norm is None else norm,
            mean=tuple(255 * value for value in model.pretrained_cfg["mean"]),
            std=tuple(255 * value for value in model.pretrained_cfg["std"]),
        )
        _prune(model, taps)
        maps = _probe_run(model.eval(), torch.zeros(1, 3, *size), taps)
        parameters = dict(model.named_parameters())
        sums = [m.sum() for m in maps]
        gradients = torch.autograd.grad(sums, list(parameters.values()), allow_unused=True)
        pad = taps.patch > 1 and not _takes_any_side(model, taps)
    unused = (n for n, g in zip(parameters, gradients, strict=True) if g is None)
    return dataclasses.replace(
        taps,
        patch=taps.patch if pad else 1,
        channels=tuple(m.shape[1] for m in maps),
        strides=tuple(size[0] / m.shape[2] for m in maps),
        unused=frozenset(unused),
        pruned=frozenset(whole - set(model.state_dict())),
    )


def _create_for(
    name: str, img_size: tuple[int, int], options: dict[str, Any]
) -> tuple[nn.Module, tuple[int, int], list[int]]:
    """Create a model for images of a size, rounded up to whole patches where it has patches.

    Returns:
        The model, the size, and the strides of its features.
    """
    guess = tuple(-(-side // 16) * 16 for side in img_size)
    model = _create(name, guess, 0.0, options)
    strides = [info["reduction"] for info in model.feature_info]
    patch = strides[0] if len(set(strides)) == 1 else 1
    size = tuple(-(-side // patch) * patch for side in img_size)
    if size != guess:
        model = _create(name, size, 0.0, options)
    return model, size, strides


def _create(
    name: str, img_size: tuple[int, int], drop_path_rate: float, options: dict[str, Any]
) -> nn.Module:
    """Create a timm model, for images of a size as far as its class depends on one."""
    if not timm.is_model(name):
        near = difflib.get_close_matches(name.split(".")[0], timm.list_models(), n=3)
        hint = f"nearest: {', '.join(near)}" if near else "timm.list_models() has the names"
        raise UserError(f"timm: {name}: no such model in timm {timm.__version__}; {hint}")
    options = {"num_classes": 0, **options}
    if drop_path_rate:
        options["drop_path_rate"] = drop_path_rate
    sizes = [{"img_size": img_size, "dynamic_img_size": True}, {"img_size": img_size}, {}]
    error: Exception | None = None
    for sized in sizes:
        try:
            return _checked(name, timm.create_model(name, pretrained=False, **options, **sized))
        except TypeError as unexpected:  # the class takes no such argument
            error = unexpected
        except UserError:
            raise
        except Exception as problem:  # models check their arguments in many ways
            raise _unusable(name, problem) from problem
    raise _unusable(name, error) from error


def _checked(name: str, model: nn.Module) -> nn.Module:
    missing = [a for a in ("forward_intermediates", "feature_info") if not hasattr(model, a)]
    if missing or not model.feature_info:
        raise UserError(
            f"timm: {name}: gives no intermediate features ({', '.join(missing) or 'empty'}); "
            "choose a model with forward_intermediates"
        )
    return model


def _prune(model: nn.Module, taps: Taps) -> None:
    """Remove the layers behind the last tap."""
    try:
        model.prune_intermediate_layers(
            list(taps.indices), prune_norm=not taps.norm, prune_head=True
        )
    except Exception as problem:  # assertions and index errors of timm
        raise _unusable(taps.model_name, problem) from problem


def _run(model: nn.Module, image: Tensor, taps: Taps) -> list[Tensor]:
    return model.forward_intermediates(
        image,
        indices=list(taps.indices),
        norm=taps.norm,
        output_fmt="NCHW",
        intermediates_only=True,
    )


def _probe_run(model: nn.Module, image: Tensor, taps: Taps) -> list[Tensor]:
    try:
        return _run(model, image, taps)
    except Exception as problem:  # what a model may raise at a size that it was not made for
        raise _unusable(taps.model_name, problem, tuple(image.shape[2:])) from problem


def _takes_any_side(model: nn.Module, taps: Taps) -> bool:
    """Tell whether a model takes sides that are no multiple of its stride."""
    height, width = (side + taps.patch // 2 for side in taps.img_size)
    try:
        _run(model, torch.zeros(1, 3, height, width), taps)
    except Exception:
        return False
    return True


def _unusable(
    name: str, problem: Exception | None, size: tuple[int, ...] | None = None
) -> UserError:
    reason = " ".join(str(problem).split())[:160] or type(problem).__name__
    at = f" at {size[0]}×{size[1]}" if size else ""
    return UserError(f"timm: {name}: cannot be a backbone{at} ({reason}); choose another model")


@MODELS.register_module()
class TimmModel(FilledFromCheckpoint, BaseModule):
    """A timm model by its name; returns the maps of its taps.

    Takes images (B, 3, H, W). Where the model takes whole patches only (plain vision transformers),
    images are padded with zeros on all sides. Returns maps (B, C_i, H/s_i, W/s_i).

    Args:
        model_name: as in `timm.list_models()`, with or without a tag.
        img_size: height and width of the training crop, in pixels, or one number for both.
        out_indices: features to tap; four by `default_indices` where None.
        norm: apply the final norm to each tap; where all strides are equal if None.
        drop_path_rate: stochastic depth, as the model distributes it.
        options: further arguments of the model.
        init_cfg: `dict(type="Pretrained", checkpoint=…)`: a file in timm's or the model's official
            layout.

    Raises:
        UserError: no such model, or one that cannot work as a backbone.
    """

    def __init__(
        self,
        model_name: str,
        img_size: int | Sequence[int] = 512,
        out_indices: Sequence[int] | None = None,
        norm: bool | None = None,
        drop_path_rate: float = 0.0,
        options: dict[str, Any] | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        options = dict(options or {})
        size = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
        indices = None if out_indices is None else tuple(out_indices)
        self.taps = probe_timm(model_name, size, indices, norm, tuple(sorted(options.items())))
        self.model = _create(model_name, self.taps.img_size, drop_path_rate, options)
        _prune(self.model, self.taps)
        synchronise_batch_norms(self.model)
        for name, parameter in self.model.named_parameters():
            if name in self.taps.unused:
                parameter.requires_grad_(False)
        self.architecture = _architecture(self)

    @property
    def out_indices(self) -> tuple[int, ...]:
        """Which features are tapped."""
        return self.taps.indices

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the maps of the taps."""
        return self.forward_taps(x, self.out_indices)

    def forward_taps(self, x: Tensor, indices: Sequence[int]) -> tuple[Tensor, ...]:
        """Return the maps of other taps than its own, none of them behind its last one."""
        taps = dataclasses.replace(self.taps, indices=tuple(indices))
        return tuple(_run(self.model, self._pad(x), taps))

    def layer_ids(self) -> dict[str, int]:
        """Return the layer of each parameter for the decay of learning rates, the stem's being 0.

        By the model's own `group_matcher`.
        """
        matcher = self.model.group_matcher(coarse=False)
        groups = group_parameters(self.model, matcher, reverse=True)
        return {f"model.{name}": layer for name, layer in groups.items()}

    def _pad(self, x: Tensor) -> Tensor:
        missing_h, missing_w = (-side % self.taps.patch for side in x.shape[2:])
        if not (missing_h or missing_w):
            return x
        left, top = missing_w // 2, missing_h // 2
        return F.pad(x, (left, missing_w - left, top, missing_h - top))


def _architecture(backbone: TimmModel) -> Architecture:
    """Return how files in timm's or the official layout fill a timm model."""
    taps, own = backbone.taps, backbone.model.state_dict()
    parts = {name.split(".")[0] for name in taps.pruned} - {name.split(".")[0] for name in own}
    pruned = [re.escape(name) for name in taps.pruned] + [rf"{p}(\..*)?" for p in parts]
    return Architecture(
        _translate_timm,
        lambda name, value, model: None,
        dropped=re.compile("|".join([CLASSIFIERS, *pruned])),
        optional={},
        anchors=(*ANCHORS, next(iter(own))),
    )


def _translate_timm(tensors: Tensors, backbone: TimmModel) -> Translated:
    """Convert an official layout by timm's own function.

    timm keeps the conversion of a family of models in `checkpoint_filter_fn` of its module.
    """
    family = sys.modules[model_entrypoint(backbone.taps.model_name.split(".")[0]).__module__]
    convert = getattr(family, "checkpoint_filter_fn", None)
    if convert is not None:
        # Position embeddings are resized without smoothing, as in published fine-tuning.
        known = inspect.signature(convert).parameters
        plain = {"antialias": False} if "antialias" in known else {}
        tensors = convert(dict(tensors), backbone.model, **plain)
    for name, value in tensors.items():
        yield name, f"model.{name}", value

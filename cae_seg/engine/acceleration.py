"""Replace stock types of a config by faster ones with the same parameters and results.

`acceleration = dict(<name>=False)` in a config turns one off, `acceleration = False` all of them;
the run's metadata lists those that are on. Inside our types, the switches of
`cae_seg.models.accelerate` go by the same key.
"""

from collections.abc import Callable, Mapping
from typing import Any

from mmengine.config import Config
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.registry import MODELS

from cae_seg.data.transforms import train_transform_of
from cae_seg.errors import UserError
from cae_seg.models.accelerate import FAST_PATHS, Switch

REPLACEMENTS: dict[str, str] = {
    "segmentor": "EncoderDecoder → FastEncoderDecoder: windows share forward passes",
    "heads": "UPerHead, FCNHead, LinearHead → FastUPerHead, FastFCNHead, FastLinearHead: fewer "
    "full-size maps",
    "batch_preprocessor": "SegDataPreProcessor → BatchPreprocessor: one batch, labels as bytes",
    "train_transform": "the stock train pipeline → TrainTransform: only pixels that the crop keeps",
    "exact_metric": "IoUMetric → ExactIoUMetric: whole-number counts, unrounded",
    "augmented_test": "SegTTAModel → FastTTAModel: all views of an image at once",
    "fused_optimizer": "one pass over weights, gradients and moments; AdamW → FastAdamW",
}
# These choose the precision of their products by torch's autocast, which apex does not use.
_OWN_PRECISION = ("fused_block", "fused_bottleneck", "matrix_deconvolution", "merged_laterals")
_HEADS = {name: f"Fast{name}" for name in ("UPerHead", "FCNHead", "LinearHead")}
_FUSED = ("AdamW", "Adam", "SGD")


def accelerate(config: Config) -> list[str]:
    """Replace what can be replaced, in place.

    Args:
        config: with stock types; its key `acceleration` is used up, and `fast_paths` tells
            `build_model` which ways within our layers are on.

    Returns:
        The names of what is on.

    Raises:
        UserError: `acceleration` names something unknown.
    """
    switches = _switches(config.pop("acceleration", True))
    if config.get("precision") == "apex":
        switches |= dict.fromkeys(_OWN_PRECISION, False)
    done = [name for name, replace in _TABLE.items() if switches[name] and replace(config)]
    ours = "segmentor" in done
    config.fast_paths = {name: ours and switches[name] for name in FAST_PATHS}
    if ours:
        config.model.fast_paths = config.fast_paths
    return [*done, *(name for name, on in config.fast_paths.items() if on)]


def _switches(chosen: Mapping[str, Switch] | Switch | None) -> dict[str, Switch]:
    names = [*REPLACEMENTS, *FAST_PATHS]
    if chosen is None or isinstance(chosen, bool | str):
        return dict.fromkeys(names, True if chosen is None else chosen)
    for name, value in chosen.items():
        if name not in names:
            raise UserError(f"acceleration.{name}: unknown; there are {', '.join(names)}")
        if value not in (True, False, "always"):
            raise UserError(f"acceleration.{name}: {value!r} is none of True, False, 'always'")
    return dict.fromkeys(names, True) | dict(chosen)


def _segmentor(config: Config) -> bool:
    model = config.model
    if model.get("type") != "EncoderDecoder" or not _predicts_by_logits(model.get("decode_head")):
        return False
    model.type = "FastEncoderDecoder"
    return True


def _predicts_by_logits(head: Any) -> bool:
    """Tell whether the arg-max of `forward` is the prediction of a head, as of most."""
    if not isinstance(head, Mapping) or "type" not in head:
        return False
    kind = MODELS.get(head["type"])
    if kind is None or not issubclass(kind, BaseDecodeHead):
        return False
    own = (kind.predict, kind.predict_by_feat)
    stock = (BaseDecodeHead.predict, BaseDecodeHead.predict_by_feat)
    classes = head.get("out_channels") or head.get("num_classes", 0)
    return own == stock and 1 < classes <= 255


def _heads(config: Config) -> bool:
    auxiliary = config.model.get("auxiliary_head")
    nodes = [config.model.get("decode_head"), auxiliary]
    flat = [n for node in nodes for n in (node if isinstance(node, list) else [node])]
    changed = [node for node in flat if node and _replaceable_head(node)]
    for node in changed:
        node.type = _HEADS[node.type]
    return bool(changed)


def _replaceable_head(head: Mapping[str, Any]) -> bool:
    return head.get("type") in _HEADS and head.get("conv_cfg") is None


def _batch_preprocessor(config: Config) -> bool:
    nodes = (config.get("data_preprocessor"), config.model.get("data_preprocessor"))
    changed = [
        node
        for node in nodes
        if node and node.get("type") == "SegDataPreProcessor" and not node.get("batch_augments")
    ]
    for node in changed:
        node.type = "BatchPreprocessor"
    return bool(changed)


def _train_transform(config: Config) -> bool:
    dataset = config.get("train_dataloader", {}).get("dataset", {})
    replacement = train_transform_of(dataset.get("pipeline") or ())
    if replacement is None:
        return False
    dataset.pipeline = [replacement]
    return True


def _exact_metric(config: Config) -> bool:
    changed = False
    for key in ("val_evaluator", "test_evaluator"):
        nodes = config.get(key) or ()
        for node in nodes if isinstance(nodes, list | tuple) else [nodes]:
            if node.get("type") == "IoUMetric":
                node.type, changed = "ExactIoUMetric", True
    return changed


def _augmented_test(config: Config) -> bool:
    model = config.get("tta_model") or {}
    if config.model.get("type") != "FastEncoderDecoder" or model.get("type") != "SegTTAModel":
        return False
    if any(step.get("direction", "horizontal") != "horizontal" for step in _flips(config)):
        return False
    model.type = "FastTTAModel"
    return True


def _flips(config: Config) -> list[Mapping[str, Any]]:
    augmentations = [s for s in config.get("tta_pipeline") or () if s["type"] == "TestTimeAug"]
    steps = [s for aug in augmentations for group in aug["transforms"] for s in group]
    return [step for step in steps if step["type"] == "RandomFlip"]


def _fused_optimizer(config: Config) -> bool:
    optimizer = (config.get("optim_wrapper") or {}).get("optimizer") or {}
    if optimizer.get("type") not in _FUSED or "foreach" in optimizer:
        return bool(optimizer.get("fused"))
    optimizer.setdefault("fused", True)
    if optimizer.fused and optimizer.type == "AdamW":
        optimizer.type = "FastAdamW"
    return bool(optimizer.fused)


# In this order: the model of an augmented test depends on the segmentor.
_TABLE: dict[str, Callable[[Config], bool]] = {
    "segmentor": _segmentor,
    "heads": _heads,
    "batch_preprocessor": _batch_preprocessor,
    "train_transform": _train_transform,
    "exact_metric": _exact_metric,
    "augmented_test": _augmented_test,
    "fused_optimizer": _fused_optimizer,
}

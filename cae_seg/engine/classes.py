"""Compare the classes of a config's heads with those of its data, before anything is trained."""

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from mmengine.config import Config
from mmseg.registry import DATASETS

from cae_seg.data.prepare.layout import MOST_CLASSES
from cae_seg.errors import UserError


def check_classes(config: Config) -> None:
    """Check that every head has as many classes, and class weights, as each data set of the config.

    A head of one output for two classes (`out_channels=1`) is as good as one of two.

    Raises:
        UserError: they differ, or there are more classes than annotations can hold.
    """
    heads = list(_heads(config.model))
    for key in ("train_dataloader", "val_dataloader"):
        classes = _classes((config.get(key) or {}).get("dataset") or {})
        if classes is None:
            continue
        if classes > MOST_CLASSES:
            raise UserError(
                f"{config.filename}: {key}: {classes} classes; annotations of 8 bits hold at most "
                f"{MOST_CLASSES}, merge classes or drop some"
            )
        for name, number in heads:
            if number != classes:
                raise UserError(
                    f"{config.filename}: model.{name}.num_classes is {number}, but the data set of "
                    f"{key} has {classes} classes; set it to {classes}"
                )
        _check_weights(config, classes)


def _check_weights(config: Config, classes: int) -> None:
    for name, loss in _losses(config.model):
        weights = loss.get("class_weight")
        if isinstance(weights, list | tuple) and len(weights) != classes:
            raise UserError(
                f"{config.filename}: model.{name}.class_weight has {len(weights)} entries for "
                f"{classes} classes; give one for each, or None"
            )


def _losses(model: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the losses of the heads that classify each pixel; queries have a class more."""
    for key in ("decode_head", "auxiliary_head"):
        heads = model.get(key)
        for head in heads if isinstance(heads, list | tuple) else [heads]:
            losses = (head or {}).get("loss_decode") or []
            for loss in losses if isinstance(losses, list | tuple) else [losses]:
                yield f"{key}.loss_decode", loss


def _heads(model: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    for key in ("decode_head", "auxiliary_head"):
        node = model.get(key)
        nodes = node if isinstance(node, list | tuple) else [node]
        for place, head in enumerate(nodes):
            if head and isinstance(head.get("num_classes"), int):
                name = f"{key}.{place}" if isinstance(node, list | tuple) else key
                yield name, head["num_classes"]


def metainfo_of(dataset: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a data set's config says about its classes: names, and colours where known.

    Its own `metainfo` comes before that of its type, as in mmsegmentation; wrappers are looked
    through, and several joined sets have that of the first. Nothing is read from the data's folder.
    """
    dataset = first_set(dataset)
    known = dict(getattr(DATASETS.get(dataset.get("type", "")), "METAINFO", {}))
    own = dataset.get("metainfo") or {}
    if "classes" in own and "palette" not in own:
        colours = dict(zip(known.get("classes", ()), known.pop("palette", ()), strict=False))
        if set(own["classes"]) <= set(colours):
            known["palette"] = [colours[name] for name in own["classes"]]
    return {**known, **own}


def first_label(dataset: Mapping[str, Any]) -> int:
    """Return the value of the first class in annotation files: 1 where 0 means "ignored", else 0.

    This is `reduce_zero_label` of the step that loads annotations or, where that says nothing, of
    the data set; of several joined sets the first counts.
    """
    dataset = first_set(dataset)
    for step in dataset.get("pipeline") or ():
        if step["type"] == "LoadAnnotations" and step.get("reduce_zero_label") is not None:
            return int(step["reduce_zero_label"])
    default = inspect.signature(DATASETS.get(dataset["type"])).parameters.get("reduce_zero_label")
    return int(dataset.get("reduce_zero_label", default.default if default else False))


def innermost(dataset: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the config inside of wrappers such as RepeatDataset."""
    while dataset.get("dataset"):
        dataset = dataset["dataset"]
    return dataset


def first_set(dataset: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the config inside of wrappers, and the first one's of a ConcatDataset."""
    dataset = innermost(dataset)
    while dataset.get("datasets"):
        dataset = innermost(dataset["datasets"][0])
    return dataset


def _classes(dataset: Mapping[str, Any]) -> int | None:
    """Return the number of classes of a data set; None where it is not known beforehand."""
    named = metainfo_of(dataset).get("classes")
    return None if named is None or isinstance(named, str) else len(named)

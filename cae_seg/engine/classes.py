"""Compare the classes of a config's heads with those of its data, before anything is trained."""

from collections.abc import Iterator, Mapping
from typing import Any

from mmengine.config import Config

from cae_seg.data.prepare.layout import MOST_CLASSES
from cae_seg.engine.data_set import class_names
from cae_seg.errors import UserError


def check_classes(config: Config) -> None:
    """Check that every head has as many classes, and class weights, as each data set of the config.

    A head of one output for two classes (`out_channels=1`) is as good as one of two.

    Raises:
        UserError: they differ, or there are more classes than annotations can hold.
    """
    heads = list(_heads(config.model))
    for key in ("train_dataloader", "val_dataloader"):
        names = class_names((config.get(key) or {}).get("dataset") or {})
        if names is None:
            continue
        classes = len(names)
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
        _check_weights(config, len(names))


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

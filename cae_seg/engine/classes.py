"""Compare the classes of a config's heads with those of its data, before anything is trained."""

from collections.abc import Iterator, Mapping
from typing import Any

from mmengine.config import Config
from mmseg.registry import DATASETS

from cae_seg.errors import UserError

MOST_CLASSES = 255
"""Annotations are read as bytes, of which one value is for ignored pixels."""


def check_classes(config: Config) -> None:
    """Check that every head has as many classes as each data set of the config.

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


def _heads(model: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    for key in ("decode_head", "auxiliary_head"):
        node = model.get(key)
        nodes = node if isinstance(node, list | tuple) else [node]
        for place, head in enumerate(nodes):
            if head and isinstance(head.get("num_classes"), int):
                name = f"{key}.{place}" if isinstance(node, list | tuple) else key
                yield name, head["num_classes"]


def _classes(dataset: Mapping[str, Any]) -> int | None:
    """Return the number of classes of a data set; None where it is not known beforehand."""
    while dataset.get("dataset"):
        dataset = dataset["dataset"]
    named = (dataset.get("metainfo") or {}).get("classes")
    if named is None:
        kind = DATASETS.get(dataset.get("type", ""))
        named = getattr(kind, "METAINFO", {}).get("classes")
    return None if named is None or isinstance(named, str) else len(named)

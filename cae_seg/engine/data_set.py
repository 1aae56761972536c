"""Put a prepared data set into a config: files, classes, and the meaning of labels everywhere."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict
from mmseg.datasets import ADE20KDataset
from mmseg.registry import DATASETS

from cae_seg.data.prepare.layout import ADE20K, IGNORED, Layout
from cae_seg.data.prepare.manifest import Manifest
from cae_seg.engine.classes import first_set, innermost

_SPLIT_OF = {
    "train_dataloader": "training",
    "val_dataloader": "validation",
    "test_dataloader": "validation",
}


def use_data(config: Config, manifest: Manifest) -> None:
    """Make a config train and evaluate on a prepared data set, in place.

    A config of ADE20K keeps its own data nodes for prepared ADE20K, but for the root. Any other
    gets the set's type, files and classes; heads get its number of classes, and preprocessor,
    transforms, heads and metric its `ignore_index`. Pipelines stay the config's.
    """
    layout = manifest.layout
    if layout == ADE20K and _is_of_ade20k(config):
        point_to(config, manifest.root)
        return
    for key, split in _SPLIT_OF.items():
        if config.get(key):
            pipeline = _pipeline(config[key].dataset)
            _set_reduce_zero_label(pipeline, bool(layout.reduce_zero_label))
            config[key].dataset = _node(manifest, split, pipeline)
    _set_reduce_zero_label(config.get("tta_pipeline") or [], bool(layout.reduce_zero_label))
    _set_classes(config.model, len(manifest.classes))
    if layout.ignore_index != IGNORED:
        _set_ignore_index(config, layout.ignore_index)


def point_to(config: Config, root: Path) -> None:
    """Make every data set of the config read from `root`."""
    for key in _SPLIT_OF:
        node = (config.get(key) or {}).get("dataset")
        while node is not None:
            if "data_root" in node:
                node.data_root = str(root)
            node = node.get("dataset")


def _is_of_ade20k(config: Config) -> bool:
    kind = DATASETS.get(innermost(config.train_dataloader.dataset).get("type") or "")
    return kind is not None and issubclass(kind, ADE20KDataset)


def _pipeline(dataset: Mapping[str, Any]) -> list[Any]:
    """Return the transforms of a data set's config, of the first one of several."""
    return first_set(dataset).get("pipeline") or []


def _node(manifest: Manifest, split: str, pipeline: list[Any]) -> ConfigDict:
    layout, part = manifest.layout, manifest.layout.splits[split]
    node: dict[str, Any] = {
        "type": layout.type,
        "data_root": str(manifest.root),
        "data_prefix": {"img_path": part.images, "seg_map_path": part.annotations},
        **_own_meaning(layout),
        "pipeline": pipeline,
    }
    if part.names:
        node["ann_file"] = part.names
    return ConfigDict(node)


def _own_meaning(layout: Layout) -> dict[str, Any]:
    """Return suffixes, classes and labels where the type does not have them."""
    if layout == ADE20K:
        return {}
    meaning: dict[str, Any] = {"reduce_zero_label": bool(layout.reduce_zero_label)}
    kind = DATASETS.get(layout.type)
    if tuple(kind.METAINFO.get("classes") or ()) != layout.classes:
        meaning["metainfo"] = {
            "classes": list(layout.classes),
            "palette": [list(color) for color in layout.palette],
        }
    if layout.type == "BaseSegDataset":
        meaning["img_suffix"] = layout.image_suffix
        meaning["seg_map_suffix"] = layout.annotation_suffix
    return meaning


def _set_reduce_zero_label(pipeline: list[Any], value: bool) -> None:
    for step in _dicts(pipeline):
        if "reduce_zero_label" in step:
            step["reduce_zero_label"] = value


def _set_classes(model: dict[str, Any], classes: int) -> None:
    """Set the number of classes of all heads, their inner parts included."""
    heads = model.get("decode_head")
    last = heads[-1] if isinstance(heads, list | tuple) else heads
    before = (last or {}).get("num_classes")
    for node in _dicts(model):
        if before is not None and node.get("num_classes") == before:
            node["num_classes"] = classes
            if node.get("out_channels") == before:  # one output for two classes stays one
                node["out_channels"] = classes


def _set_ignore_index(config: Config, value: int) -> None:
    for node in _dicts([config.model, *(config.get(key) or {} for key in _SPLIT_OF)]):
        for key in ("seg_pad_val", "ignore_index"):
            if node.get(key) == IGNORED:
                node[key] = value
        if node.get("type") in ("RandomCrop", "RandomRotate"):
            node["ignore_index" if node["type"] == "RandomCrop" else "seg_pad_val"] = value
    for key in ("decode_head", "auxiliary_head"):
        heads = config.model.get(key)
        for head in heads if isinstance(heads, list | tuple) else [heads]:
            if head:
                head["ignore_index"] = value
    if (preprocessor := config.model.get("data_preprocessor")) is not None:
        preprocessor["seg_pad_val"] = value
    if config.get("data_preprocessor"):
        config.data_preprocessor["seg_pad_val"] = value
    for key in ("val_evaluator", "test_evaluator"):
        metrics = config.get(key) or []
        for metric in metrics if isinstance(metrics, list | tuple) else [metrics]:
            metric["ignore_index"] = value


def _dicts(node: Any) -> Iterator[dict]:
    """Yield all mappings within a config value."""
    if isinstance(node, dict):
        yield node
        node = list(node.values())
    if isinstance(node, list | tuple):
        for entry in node:
            if isinstance(entry, dict | list | tuple):
                yield from _dicts(entry)

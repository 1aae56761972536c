"""From what a person says about a data set to its layout: a folder of one's own, or a type of
mmsegmentation with the layout that its base config has."""

import colorsys
import dataclasses
import difflib
import inspect
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cae_seg.config_files import zoo_folder
from cae_seg.data.prepare.layout import (
    IGNORED,
    MOST_CLASSES,
    Layout,
    Split,
    describe_values,
    ranges,
)
from cae_seg.data.prepare.verify import FORMATS, verify
from cae_seg.errors import UserError
from cae_seg.files import read_json

FOLDER_SPLITS = {"training": "train", "validation": "val"}
CLASS_FILES = ("classes.txt", "classes.json")


@dataclass(frozen=True)
class Description:
    """What a person says about a data set other than ADE20K.

    Args:
        type: "folder", or a data set type of mmsegmentation.
        classes: file with the names of the classes of a folder, one a line, or as JSON with
            colours; `classes.txt` or `classes.json` in the folder unless given.
        reduce_zero_label: whether 0 is ignored and classes count from 1; a type has its own.
        ignore_index: label of the pixels that do not count.
    """

    type: str
    classes: Path | None = None
    reduce_zero_label: bool | None = None
    ignore_index: int | None = None


def find_layout(root: Path, description: Description) -> Layout:
    """Return the layout of a data set.

    Args:
        root: its folder.
        description: what a person says about it.

    Raises:
        UserError: the folder is not as described, the type is unknown, or it is open whether 0 is
            ignored; the message then tells what the values found would mean.
    """
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; unpack the data set and give its folder")
    layout = (
        _own_layout(root, description)
        if description.type == "folder"
        else _mmseg_layout(root, description)
    )
    layout = dataclasses.replace(layout, ignore_index=_ignore_index(description))
    if not layout.classes:
        raise UserError(f"{root}: {description.type} has no classes; name them in the data set")
    if len(layout.classes) > MOST_CLASSES:
        raise UserError(
            f"{root}: {len(layout.classes)} classes; annotations of 8 bits hold at most "
            f"{MOST_CLASSES}, merge classes or drop some"
        )
    if layout.reduce_zero_label and layout.ignore_index != IGNORED:
        raise UserError(
            f"ignore_index: {layout.ignore_index} does not go with reduce_zero_label, which makes "
            f"0 the label {IGNORED}; leave ignore_index out"
        )
    if layout.reduce_zero_label is None:
        raise UserError(_open_question(root, layout))
    return layout


def _ignore_index(description: Description) -> int:
    return IGNORED if description.ignore_index is None else description.ignore_index


def _open_question(root: Path, layout: Layout) -> str:
    """Say what the values in the annotations mean with either answer."""
    values = verify(root, str(root), layout=layout).values
    found = sorted({value for of_split in values.values() for value in of_split})
    answers = []
    for answer in (False, True):
        meant = dataclasses.replace(layout, reduce_zero_label=answer)
        unknown = [value for value in found if not meant.allowed()[value]]
        text = (
            f"leaves {ranges(unknown)} without a meaning"
            if unknown
            else f"means {describe_values(meant, found)}"
        )
        answers.append(f"`reduce_zero_label: {str(answer).lower()}` {text}")
    return (
        f"{root}: the annotations have the values {ranges(found)} for {len(layout.classes)} "
        f"classes; write which is right: {', '.join(answers)}"
    )


# A folder of one's own


def _own_layout(root: Path, description: Description) -> Layout:
    splits = {
        split: Split(f"images/{name}", f"annotations/{name}")
        for split, name in FOLDER_SPLITS.items()
    }
    for split in splits.values():
        for folder in (split.images, split.annotations):
            if not (root / folder).is_dir():
                raise UserError(
                    f"{root}: folder {folder} is missing; a folder needs images/train, images/val, "
                    "annotations/train, annotations/val"
                )
    classes, palette = read_class_file(_class_file(root, description.classes))
    return Layout(
        type="BaseSegDataset",
        splits=splits,
        image_suffix=_image_suffix(root, splits),
        annotation_suffix=".png",
        classes=classes,
        palette=palette,
        reduce_zero_label=description.reduce_zero_label,
    )


def _class_file(root: Path, given: Path | None) -> Path:
    if given is not None:
        return given
    for name in CLASS_FILES:
        if (root / name).is_file():
            return root / name
    raise UserError(f"{root}: has no {' or '.join(CLASS_FILES)}; write the names of the classes")


def read_class_file(path: Path) -> tuple[tuple[str, ...], tuple[tuple[int, int, int], ...]]:
    """Read names and colours of classes, in the order of their labels.

    Args:
        path: text with a name a line; or JSON, a list of names, or of objects with `name` and
            `color`, three numbers 0 to 255.

    Returns:
        Names, and a colour for each: the file's, or one of evenly spread hues.

    Raises:
        UserError: it is missing or has another form, or a name is there twice.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; write the names of the classes")
    if path.suffix == ".json":
        entries = read_json(path)
        if not isinstance(entries, list):
            raise UserError(f"{path}: must be a list of names, or of objects with name and color")
    else:
        lines = path.read_text(errors="replace").splitlines()
        entries = [line.strip() for line in lines if line.strip()]
    pairs = [_class_entry(path, number, entry) for number, entry in enumerate(entries)]
    names = tuple(name for name, _ in pairs)
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"{path}: names the class {twice[0]!r} twice; use each name once")
    return names, tuple(color for _, color in pairs)


def _class_entry(path: Path, number: int, entry: Any) -> tuple[str, tuple[int, int, int]]:
    name, color = (
        (entry.get("name"), entry.get("color")) if isinstance(entry, dict) else (entry, None)
    )
    if not isinstance(name, str) or not name.isprintable() or not name:
        raise UserError(f"{path}: entry {number + 1} has no name; write text, or name and color")
    if color is None:
        # Neighbouring numbers get hues that are far apart.
        spread = colorsys.hsv_to_rgb(number * 0.618034 % 1, 0.75, 0.95 - 0.25 * (number % 2))
        return name, tuple(round(255 * part) for part in spread)
    if (
        not isinstance(color, list)
        or len(color) != 3
        or not all(type(part) is int and 0 <= part <= 255 for part in color)
    ):
        raise UserError(f"{path}: the color of {name!r} must be three numbers 0 to 255")
    return name, tuple(color)


def _image_suffix(root: Path, splits: dict[str, Split]) -> str:
    """Return the suffix that all images have."""
    found = {
        os.path.splitext(name)[1]
        for split in splits.values()
        for _, _, files in os.walk(root / split.images)
        for name in files
        if not name.startswith(".") and os.path.splitext(name)[1].lower() in FORMATS
    }
    if len(found) != 1:
        what = (
            f"are {' and '.join(sorted(found))}" if found else f"are none of {', '.join(FORMATS)}"
        )
        raise UserError(f"{root}: the files in images {what}; all must be of one kind")
    return found.pop()


# Types of mmsegmentation


def _mmseg_layout(root: Path, description: Description) -> Layout:
    """Return the first layout of a type's base configs that the folder has."""
    from mmseg.datasets import BaseSegDataset
    from mmseg.registry import DATASETS

    kind = DATASETS.get(description.type)
    if kind is None or not issubclass(kind, BaseSegDataset):
        known = sorted({node["type"] for nodes in _zoo_nodes() for node in nodes.values()})
        near = difflib.get_close_matches(description.type, known, n=3, cutoff=0.3) or known
        raise UserError(
            f"data: type: {description.type!r} is no segmentation data set of mmsegmentation; "
            f"nearest: {', '.join(near)}"
        )
    missing = ""
    for nodes in _zoo_nodes():
        if any(node["type"] != description.type for node in nodes.values()):
            continue
        layout = _layout_of(kind, nodes, description)
        absent = [name for name in layout.folders if not (root / name).is_dir()]
        if not absent:
            return layout
        missing = missing or absent[0]
    if missing:
        raise UserError(
            f"{root}: folder {missing} is missing; {description.type} is laid out as in "
            "mmsegmentation's guide to preparing data sets"
        )
    raise UserError(
        f"data: type: mmsegmentation has no base config of {description.type}, so its layout is "
        "not known; arrange the files as a folder and use `type: folder`"
    )


def _layout_of(kind: type, nodes: dict[str, dict], description: Description) -> Layout:
    node = nodes["training"]
    meaning = {**kind.METAINFO, **(node.get("metainfo") or {})}
    reduce = description.reduce_zero_label
    if reduce is None:
        reduce = node.get("reduce_zero_label", _default_of(kind, "reduce_zero_label"))
    image_suffix = _default_of(kind, "img_suffix")
    if Path(f"x{image_suffix}").suffix not in FORMATS:
        raise UserError(f"data: type: {description.type} has {image_suffix} files, not images")
    return Layout(
        type=description.type,
        splits={
            split: Split(
                part["data_prefix"]["img_path"],
                part["data_prefix"]["seg_map_path"],
                part.get("ann_file") or "",
            )
            for split, part in nodes.items()
        },
        image_suffix=image_suffix,
        annotation_suffix=_default_of(kind, "seg_map_suffix"),
        classes=tuple(meaning.get("classes") or ()),
        palette=tuple(tuple(map(int, color)) for color in meaning.get("palette") or ()),
        reduce_zero_label=bool(reduce),
    )


def _default_of(kind: type, name: str) -> Any:
    """Return the default of an argument of a data set type; its own comes before its bases'."""
    for base in kind.__mro__:
        parameters = inspect.signature(base.__init__).parameters if base is not object else {}
        if name in parameters:
            return parameters[name].default
    return None


def _zoo_nodes() -> Iterator[dict[str, dict]]:
    """Yield training and validation data of mmsegmentation's base configs that hold pairs."""
    from mmengine.config import Config

    for path in sorted((zoo_folder() / "_base_" / "datasets").glob("*.py")):
        config = Config.fromfile(path)
        nodes = {
            split: (config.get(f"{key}_dataloader") or {}).get("dataset") or {}
            for split, key in (("training", "train"), ("validation", "val"))
        }
        prefixes = [node.get("data_prefix") or {} for node in nodes.values()]
        if all(set(prefix) == {"img_path", "seg_map_path"} for prefix in prefixes):
            yield nodes

"""Where the files of a data set are, and what the values of its annotations mean."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

SPLITS = ("training", "validation")
IGNORED = 255
MOST_CLASSES = 255  # annotations are read as bytes, of which one value is for ignored pixels


@dataclass(frozen=True)
class Split:
    """The files of one split; paths are relative to the data set's root.

    Args:
        images: folder of the images.
        annotations: folder of the annotations.
        names: file with one name a line, without suffix; all images of the folder where empty.
    """

    images: str
    annotations: str
    names: str = ""


@dataclass(frozen=True)
class Layout:
    """A data set as mmsegmentation reads it.

    Args:
        type: data set type of mmsegmentation.
        splits: training and validation.
        image_suffix: what names of images end with.
        annotation_suffix: what replaces it in the names of annotations.
        classes: names, in the order of the labels.
        palette: a colour (R, G, B) per class.
        reduce_zero_label: whether 0 is ignored in annotations and classes count from 1; None while
            that is not known.
        ignore_index: label of the pixels that do not count.
        lists: files below the root that belong to the data set besides its pairs.
    """

    type: str
    splits: Mapping[str, Split]
    image_suffix: str
    annotation_suffix: str
    classes: tuple[str, ...] = ()
    palette: tuple[tuple[int, int, int], ...] = ()
    reduce_zero_label: bool | None = False
    ignore_index: int = IGNORED
    lists: tuple[str, ...] = ()

    @property
    def own_files(self) -> tuple[str, ...]:
        """Files below the root that are no pairs: lists of names, classes."""
        names = dict.fromkeys(split.names for split in self.splits.values() if split.names)
        return (*self.lists, *names)

    @property
    def folders(self) -> tuple[str, ...]:
        """Every folder that holds pairs, once."""
        parts = [(split.images, split.annotations) for split in self.splits.values()]
        return tuple(
            dict.fromkeys(folder for kinds in zip(*parts, strict=True) for folder in kinds)
        )

    def pair(self, root: Path, split: str, stem: str) -> tuple[Path, Path]:
        """Return where image and annotation of a pair are."""
        part = self.splits[split]
        image = root / part.images / f"{stem}{self.image_suffix}"
        return image, root / part.annotations / f"{stem}{self.annotation_suffix}"

    def meanings(self) -> dict[int, str]:
        """Return what the values of annotations mean: a class, or "ignored"."""
        first = int(bool(self.reduce_zero_label))
        values = {first + label: name for label, name in enumerate(self.classes)}
        if self.reduce_zero_label:
            values[0] = "ignored"
        return values | {self.ignore_index: "ignored"}

    def allowed(self) -> np.ndarray:
        """Return whether each value 0 … 255 may occur in an annotation."""
        if self.reduce_zero_label is None:
            return np.ones(256, bool)
        allowed = np.zeros(256, bool)
        allowed[[value for value in self.meanings() if value < 256]] = True
        return allowed

    def as_dict(self) -> dict[str, Any]:
        """Return the layout as plain values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> "Layout":
        """Read what `as_dict` returned, also after a way through JSON.

        Raises:
            KeyError, TypeError: it is no such thing.
        """
        splits = {split: Split(**value["splits"][split]) for split in SPLITS}
        tuples = {
            "classes": tuple(value["classes"]),
            "palette": tuple(map(tuple, value["palette"])),
            "lists": tuple(value["lists"]),
        }
        return cls(**{**value, **tuples, "splits": splits})


ADE20K = Layout(
    type="ADE20KDataset",
    splits={split: Split(f"images/{split}", f"annotations/{split}") for split in SPLITS},
    image_suffix=".jpg",
    annotation_suffix=".png",
    reduce_zero_label=True,
    lists=("objectInfo150.txt", "sceneCategories.txt"),
)
"""The scene parsing archive; its 150 classes are named in the first of the lists."""


def describe_values(layout: Layout, found: Sequence[int]) -> str:
    """Say what the values found in annotations mean: "0 road, 1 car; 255 ignored"."""
    meanings = layout.meanings()
    named = [f"{value} {meanings[value]}" for value in found if meanings[value] != "ignored"]
    ignored = [str(value) for value in found if meanings[value] == "ignored"]
    parts = [", ".join(_shortened(named))] if named else []
    return "; ".join([*parts, *([f"{' and '.join(ignored)} ignored"] if ignored else [])])


def unused_classes(layout: Layout, found: Sequence[int]) -> list[str]:
    """Return the classes that no annotation has."""
    first = int(bool(layout.reduce_zero_label))
    return [name for label, name in enumerate(layout.classes) if first + label not in set(found)]


def ranges(values: Sequence[int]) -> str:
    """Write sorted whole numbers in short: "0 to 6, 255"."""
    return ", ".join(f"{a} to {b}" if b > a else f"{a}" for a, b in _runs(values))


def _runs(values: Sequence[int]) -> Iterator[tuple[int, int]]:
    start = previous = None
    for value in values:
        if previous is not None and value != previous + 1:
            yield start, previous
            start = None
        start = value if start is None else start
        previous = value
    if previous is not None:
        yield start, previous


def _shortened(names: list[str], most: int = 8) -> list[str]:
    return names if len(names) <= most else [*names[: most - 1], "…", names[-1]]

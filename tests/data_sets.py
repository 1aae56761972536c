"""Small generated data sets in the layouts of mmsegmentation's types, and as a plain folder."""

from pathlib import Path

import numpy as np
from PIL import Image

SIDE = (40, 64)
COUNTS = {"training": 6, "validation": 3}


def draw(rng: np.random.Generator, values: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return an image of stripes and its annotation, which has some of the values."""
    stripes = np.repeat(rng.choice(values, 8), 8)
    label = np.broadcast_to(stripes, SIDE).astype(np.uint8)
    image = (label[..., None] * [40, 25, 10] + rng.integers(0, 30, (*SIDE, 3))) % 256
    return image.astype(np.uint8), label


def write_pair(image: Path, annotation: Path, values: list[int], seed: int, palette=False) -> None:
    """Write one pair; with `palette` the annotation is a picture in palette colours."""
    picture, label = draw(np.random.default_rng(seed), values)
    for path in (image, annotation):
        path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(image)
    saved = Image.fromarray(label)
    if palette:
        saved = saved.convert("P")
        saved.putdata(label.ravel().tolist())
        saved.putpalette(np.random.default_rng(0).integers(0, 256, 768, dtype=np.uint8).tolist())
    saved.save(annotation)


def make_folder(root: Path, values: list[int], classes: list[str] | None = None) -> Path:
    """Write a data set of one's own: images/{train,val}, annotations/{train,val}."""
    for split, name in (("training", "train"), ("validation", "val")):
        for number in range(COUNTS[split]):
            write_pair(
                root / f"images/{name}/{number}.jpg",
                root / f"annotations/{name}/{number}.png",
                values,
                number + 100 * len(name),
            )
    if classes is not None:
        (root / "classes.txt").write_text("\n".join(classes) + "\n")
    return root


def _names(root: Path, folder: str, names: dict[str, list[str]]) -> None:
    for split, stems in names.items():
        path = root / "ImageSets" / folder / f"{split}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(stems) + "\n")


def make_cityscapes(root: Path) -> None:
    for split, city, count in (("train", "aachen", 6), ("val", "lindau", 3)):
        for number in range(count):
            stem = f"{city}/{city}_{number:06}"
            write_pair(
                root / f"leftImg8bit/{split}/{stem}_leftImg8bit.png",
                root / f"gtFine/{split}/{stem}_gtFine_labelTrainIds.png",
                [0, 1, 5, 18, 255],
                number,
            )


def make_coco_stuff(root: Path) -> None:
    for split, count in (("train2017", 6), ("val2017", 3)):
        for number in range(count):
            write_pair(
                root / f"images/{split}/{number:012}.jpg",
                root / f"annotations/{split}/{number:012}_labelTrainIds.png",
                [0, 90, 170, 255],
                number,
            )


def _make_voc_like(root: Path, lists: str, annotations: str, values: list[int], palette: bool):
    stems = {"train": [f"2010_{n}" for n in range(6)], "val": [f"2010_{n}" for n in range(6, 9)]}
    _names(root, lists, stems)
    for number, stem in enumerate([*stems["train"], *stems["val"], "2010_not_listed"]):
        image, annotation = root / f"JPEGImages/{stem}.jpg", root / f"{annotations}/{stem}.png"
        write_pair(image, annotation, values, number, palette)
    annotation.unlink()  # most images of these sets have none


def make_pascal_context(root: Path) -> None:
    lists, folder = "SegmentationContext", "SegmentationClassContext"
    _make_voc_like(root, lists, folder, [0, 1, 59], palette=False)


def make_voc(root: Path) -> None:
    _make_voc_like(root, "Segmentation", "SegmentationClass", [0, 1, 20, 255], palette=True)


def make_loveda(root: Path) -> None:
    for split, count in (("train", 6), ("val", 3)):
        for number in range(count):
            write_pair(
                root / f"img_dir/{split}/{number}.png",
                root / f"ann_dir/{split}/{number}.png",
                [0, 1, 3, 7],
                number,
            )


MAKERS = {
    "CityscapesDataset": (make_cityscapes, 19),
    "COCOStuffDataset": (make_coco_stuff, 171),
    "PascalContextDataset": (make_pascal_context, 60),
    "PascalContextDataset59": (make_pascal_context, 59),
    "PascalVOCDataset": (make_voc, 21),
    "LoveDADataset": (make_loveda, 7),
}
"""What writes a small data set of each type, and how many classes the type has."""

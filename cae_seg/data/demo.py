"""A small data set in the ADE20K layout and three checkpoints for it, drawn from a seed.

    cae-seg prepare demo --archive data/demo/ADEChallengeData2016.zip --checkpoints data/demo

Landscapes of nine classes, each with a colour and a texture of its own, that a tiny transformer
learns in a few hundred iterations.
"""

import io
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from cae_seg.data.demo_checkpoints import write_checkpoints
from cae_seg.data.prepare.manifest import FOLDER
from cae_seg.files import atomic_writer
from cae_seg.progress import progress

IMAGES = {"training": 64, "validation": 24}
PREFIX = {"training": "ADE_train", "validation": "ADE_val"}
EPOCH_OF_ZIP = (2016, 1, 1, 0, 0, 0)
VOID = 0
BUILDING, SKY, TREE, ROAD, GRASS, MOUNTAIN, CAR, WATER, POLE = 2, 3, 5, 7, 10, 17, 21, 22, 94


def make_demo(archive: Path, checkpoints: Path, *, seed: int = 0) -> None:
    """Write the demo's archive and its pretrained checkpoints; the same bytes for one seed.

    Args:
        archive: zip file to write, in the layout of ADEChallengeData2016.zip.
        checkpoints: folder to write the checkpoints to, as `write_checkpoints` names them.
        seed: what everything is drawn from.

    Raises:
        UserError: a folder cannot be written.
    """
    images = _write_archive(Path(archive), seed)
    write_checkpoints(Path(checkpoints), images, seed)


def draw_scene(rng: np.random.Generator, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Draw one landscape of (width, height).

    Returns:
        image (H, W, 3) uint8 RGB and annotation (H, W) uint8 with values 0 … 150.
    """
    label = _draw_label(rng, *size)
    image = np.empty((*label.shape, 3))
    for number in np.unique(label):
        mask = label == number
        image[mask] = _SURFACES[number](rng, *label.shape)[mask]
    image = image * rng.uniform(0.85, 1.15) + rng.normal(0, 4, image.shape)
    return np.clip(image, 0, 255).astype(np.uint8), label


def _draw_label(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    label = np.full((height, width), SKY, np.uint8)
    horizon = int(height * rng.uniform(0.35, 0.6))
    if rng.random() < 0.5:
        peak = rng.integers(0, width), int(horizon * rng.uniform(0.2, 0.6))
        slope = np.array([[0, horizon], peak, [width - 1, horizon]], np.int32)
        cv2.fillPoly(label, [slope], MOUNTAIN)
    for _ in range(rng.integers(0, 3)):
        left, wide = rng.integers(0, width), int(height * rng.uniform(0.2, 0.5))
        top = int(horizon * rng.uniform(0.2, 0.7))
        cv2.rectangle(label, (left, top), (left + wide, horizon), BUILDING, -1)
    label[horizon:] = rng.choice([GRASS, WATER])
    if rng.random() < 0.6:
        _draw_road(label, rng, horizon)
    for _ in range(rng.integers(0, 4)):
        reach = int(height * rng.uniform(0.1, 0.22))
        centre = int(rng.integers(0, width)), horizon - int(reach * rng.uniform(0, 0.6))
        cv2.ellipse(label, centre, (int(reach * 0.8), reach), 0, 0, 360, TREE, -1)
    if rng.random() < 0.3:
        pole = int(rng.integers(0, width))
        cv2.rectangle(label, (pole, horizon // 3), (pole + height // 14, height), POLE, -1)
    label[horizon - 1 : horizon + 1] = VOID  # the edge belongs to neither
    if rng.random() < 0.3:
        centre = int(rng.integers(0, width)), int(rng.integers(0, height))
        cv2.ellipse(label, centre, (height // 9, height // 12), 0, 0, 360, VOID, -1)
    return label


def _draw_road(label: np.ndarray, rng: np.random.Generator, horizon: int) -> None:
    height, width = label.shape
    middle, near = rng.integers(0, width), height * rng.uniform(0.35, 0.7)
    corners = [
        [middle - height // 16, horizon],
        [middle + height // 16, horizon],
        [middle + near, height],
        [middle - near, height],
    ]
    cv2.fillPoly(label, [np.array(corners, np.int32)], ROAD)
    if rng.random() < 0.7:
        reach = int(height * rng.uniform(0.08, 0.14))
        centre = int(middle), int(horizon + (height - horizon) * rng.uniform(0.4, 0.8))
        cv2.ellipse(label, centre, (2 * reach, reach), 0, 0, 360, CAR, -1)


Surface = Callable[[np.random.Generator, int, int], np.ndarray]


def _plain(*colour: int) -> Surface:
    def paint(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
        shade = np.linspace(0.9, 1.1, height)[:, None, None]
        return np.array(colour) * shade * np.ones((1, width, 1))

    return paint


def _waves(colour: tuple[int, int, int], depth: float, across: float, down: float) -> Surface:
    """Stripes: `across` and `down` are periods in pixels along the axes, 0 for none."""

    def paint(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
        y, x = np.mgrid[:height, :width]
        phase = rng.uniform(0, 2 * np.pi)
        angle = phase + (2 * np.pi * x / across if across else 0)
        angle = angle + (2 * np.pi * y / down if down else 0)
        return np.array(colour) * (1 + depth * np.sin(angle))[..., None]

    return paint


def _speckles(colour: tuple[int, int, int], depth: float, grain: int) -> Surface:
    def paint(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
        coarse = rng.normal(0, depth, (height // grain + 1, width // grain + 1))
        fine = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)
        return np.array(colour) * (1 + fine)[..., None]

    return paint


_SURFACES: dict[int, Surface] = {
    VOID: _speckles((128, 128, 128), 0.5, 2),
    SKY: _plain(150, 190, 240),
    MOUNTAIN: _speckles((150, 110, 90), 0.15, 9),
    BUILDING: _waves((205, 80, 60), 0.35, 0, 9),
    TREE: _speckles((25, 85, 30), 0.5, 4),
    GRASS: _waves((120, 200, 60), 0.15, 5, 0),
    WATER: _waves((30, 90, 190), 0.3, 30, 7),
    ROAD: _plain(80, 80, 85),
    CAR: _plain(250, 215, 20),
    POLE: _waves((235, 235, 235), 0.5, 0, 12),
}


def _write_archive(archive: Path, seed: int) -> list[np.ndarray]:
    """Write the zip and return its training images."""
    kept = []
    scenes = _scenes(seed)
    with atomic_writer(archive) as stream, zipfile.ZipFile(stream, "w") as content:
        for split, stem, image, label in progress(
            scenes, "draw", "image", total=sum(IMAGES.values())
        ):
            kept += [image] if split == "training" else []
            jpeg = _encode(image, "JPEG", quality=90)
            _add(content, f"images/{split}/{stem}.jpg", jpeg)
            _add(content, f"annotations/{split}/{stem}.png", _encode(label, "PNG"))
        _add(content, "objectInfo150.txt", _class_list().encode())
        _add(content, "sceneCategories.txt", _scene_list().encode())
    return kept


def _stems(split: str) -> list[str]:
    return [f"{PREFIX[split]}_{number + 1:08d}" for number in range(IMAGES[split])]


def _scenes(seed: int) -> Iterator[tuple[str, str, np.ndarray, np.ndarray]]:
    for place, split in enumerate(IMAGES):
        for number, stem in enumerate(_stems(split)):
            rng = np.random.default_rng([seed, place, number])
            short, ratio = rng.integers(96, 144), rng.choice([0.75, 1.0, 1.33, 1.33, 1.5, 1.8])
            if number == 1:  # of either split: wider than the test scale, (4, 1), allows for
                short, ratio = 64, 4.4
            wide, high = int(short * max(ratio, 1)), int(short / min(ratio, 1))
            yield split, stem, *draw_scene(rng, (wide, high))


def _encode(array: np.ndarray, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, kind, **options)
    return stream.getvalue()


def _add(content: zipfile.ZipFile, name: str, data: bytes) -> None:
    entry = zipfile.ZipInfo(f"{FOLDER}/{name}", EPOCH_OF_ZIP)
    entry.external_attr = 0o644 << 16
    entry.compress_type = zipfile.ZIP_DEFLATED if name.endswith(".txt") else zipfile.ZIP_STORED
    content.writestr(entry, data)


def _class_list() -> str:
    from mmseg.datasets import ADE20KDataset

    rows = ["Idx\tRatio\tTrain\tVal\tStuff\tName"]
    for number, name in enumerate(ADE20KDataset.METAINFO["classes"], start=1):
        rows.append(f"{number}\t0.0000\t0\t0\t0\t{name}")
    return "\n".join(rows) + "\n"


def _scene_list() -> str:
    return "".join(f"{stem} landscape\n" for split in IMAGES for stem in _stems(split))

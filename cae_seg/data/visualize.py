"""Label maps as pictures: in the palette of ADE20K, side by side, with the names of the classes."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from cae_seg.errors import UserError
from cae_seg.files import atomic_writer, check_output_file

SIGNATURE = "cae-seg predict"
"""The `Software` text chunk of our PNGs; only files that carry it are overwritten."""
IGNORED = 255
LONGEST_SIDE = 480  # pixels
MARGIN = 8
LINE = 18
SWATCH = 12
COLUMN = 200  # at least, for a name in the legend
MOST_NAMES = 24


@functools.cache
def ade20k_palette() -> np.ndarray:
    """Return the colours of the 150 classes, (150, 3) uint8."""
    from mmseg.utils import ade_palette

    return np.array(ade_palette(), dtype=np.uint8)


def write_picture(picture: np.ndarray, path: Path) -> None:
    """Write a picture (H, W) or (H, W, 3) uint8 as PNG, marked as ours.

    Raises:
        UserError: it cannot be written.
    """
    mark = PngInfo()
    mark.add_text("Software", SIGNATURE)
    with atomic_writer(path) as stream:
        Image.fromarray(picture).save(stream, "PNG", pnginfo=mark)


def check_picture_file(path: Path) -> None:
    """Check that a picture can be written and replaces nothing but an earlier one of ours.

    Raises:
        UserError: it would replace another file, or its folder cannot be written.
    """
    check_output_file(path)
    if path.exists() and not _is_ours(path):
        raise UserError(
            f"{path}: exists and was not written by cae-seg; move it or choose another folder"
        )


def _is_ours(path: Path) -> bool:
    try:
        with Image.open(path) as picture:
            return picture.info.get("Software") == SIGNATURE
    except Exception:  # any other file, damaged or not
        return False


def palette_of(metainfo: Mapping[str, Any]) -> np.ndarray:
    """Return the colours of a data set's classes, (classes, 3) uint8 RGB.

    Without colours of their own, classes get those of ADE20K in turn.
    """
    if palette := metainfo.get("palette"):
        return np.array(palette, dtype=np.uint8)
    return np.resize(ade20k_palette(), (len(metainfo["classes"]), 3))


def draw_labels(labels: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """Colour a label map; what is ignored (255) is black.

    Args:
        labels: (H, W), classes from 0.
        palette: (classes, 3) uint8.

    Returns:
        (H, W, 3) uint8, RGB.
    """
    colours = np.zeros((256, 3), dtype=np.uint8)
    colours[: len(palette)] = palette
    colours[IGNORED] = 0
    return colours[labels]


def draw_overlay(
    image: np.ndarray, labels: np.ndarray, palette: np.ndarray, opacity: float = 0.5
) -> np.ndarray:
    """Lay the colours of a label map over its image; where it is ignored (255), the image stays.

    Args:
        image: (H, W, 3) uint8, RGB.
        labels: (H, W), classes from 0.
        palette: (classes, 3) uint8.
        opacity: of the colours, 0 (the image alone) to 1 (the colours alone).

    Returns:
        (H, W, 3) uint8, RGB.
    """
    mixed = (1 - opacity) * image + opacity * draw_labels(labels, palette)
    return np.where(labels[..., None] == IGNORED, image, np.rint(mixed)).astype(np.uint8)


def draw_comparison(
    image: np.ndarray,
    gt: np.ndarray | None,
    prediction: np.ndarray,
    class_names: Sequence[str],
    palette: np.ndarray | None = None,
) -> np.ndarray:
    """Set image, ground truth and prediction side by side over a legend.

    Args:
        image: (H, W, 3) uint8, RGB.
        gt: (H, W) classes from 0, 255 is ignored; None where there is none.
        prediction: (H, W) classes from 0.
        class_names: names by class.
        palette: (classes, 3) uint8; ADE20K's unless given.

    Returns:
        (h, w, 3) uint8, RGB; every picture is scaled to at most 480 pixels.
    """
    palette = ade20k_palette() if palette is None else palette
    pictures = [("image", image), ("prediction", draw_labels(prediction, palette))]
    if gt is not None:
        pictures.insert(1, ("ground truth", draw_labels(gt, palette)))
    scale = min(1.0, LONGEST_SIDE / max(image.shape[:2]))
    width, height = (max(1, round(side * scale)) for side in (image.shape[1], image.shape[0]))
    total = max(len(pictures) * (width + MARGIN) + MARGIN, LONGEST_SIDE)
    names = _legend(gt, prediction, class_names)
    columns = total // COLUMN
    legend_top = height + 2 * MARGIN + LINE
    lines = -(-len(names) // columns)
    sheet = Image.new("RGB", (total, legend_top + lines * LINE + MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (title, picture) in enumerate(pictures):
        x = MARGIN + number * (width + MARGIN)
        way = Image.Resampling.BILINEAR if title == "image" else Image.Resampling.NEAREST
        sheet.paste(Image.fromarray(picture).resize((width, height), way), (x, MARGIN + LINE))
        draw.text((x, MARGIN), title, fill="black", font=_font())
    for number, (label, text) in enumerate(names):
        x = MARGIN + number % columns * ((total - MARGIN) // columns)
        colour = tuple(int(value) for value in palette[label])
        _draw_name(draw, x, legend_top + number // columns * LINE, colour, text)
    return np.asarray(sheet)


def _draw_name(
    draw: ImageDraw.ImageDraw, x: int, y: int, colour: tuple[int, ...], text: str
) -> None:
    draw.rectangle((x, y, x + SWATCH, y + SWATCH), fill=colour, outline="black")
    draw.text((x + SWATCH + 5, y - 1), text, fill="black", font=_font())


@functools.cache
def _font() -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(12)


def _legend(
    gt: np.ndarray | None, prediction: np.ndarray, class_names: Sequence[str]
) -> list[tuple[int, str]]:
    """Return the classes to name, the largest first, with what one of the two maps lacks."""
    maps = [prediction] if gt is None else [gt, prediction]
    counts = [np.bincount(labels.ravel(), minlength=256)[: len(class_names)] for labels in maps]
    order = np.argsort(-sum(counts), kind="stable")
    present = [int(label) for label in order if any(count[label] for count in counts)]
    names = []
    for label in present[:MOST_NAMES]:
        remark = ""
        if gt is not None and not all(count[label] for count in counts):
            remark = " (missed)" if counts[0][label] else " (predicted only)"
        names.append((label, f"{class_names[label]}{remark}"))
    return names

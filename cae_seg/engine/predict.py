"""Paint the segmentation of any images, with the names of what was found."""

from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from cae_seg.data.images import read_image
from cae_seg.data.visualize import paint_panel
from cae_seg.engine.segmenter import Segmenter, open_segmenter
from cae_seg.engine.validate import check_checkpoint
from cae_seg.errors import UserError
from cae_seg.files import atomic_writer, check_output_file, check_writable
from cae_seg.progress import progress
from cae_seg.run.logs import Voice, separate_logs

IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
SIGNATURE = "cae-seg predict"
"""The `Software` text chunk of our PNGs; only files that carry it are overwritten."""


def predict(
    weights: Path, inputs: Path, out: Path, *, config: Path | None = None, device: str = "auto"
) -> list[Path]:
    """Segment images; write `<stem>.png` (label map) and `<stem>_panel.png` (painting, legend).

    A label map is a PNG of 8 bits with the values of the data's own annotations: of ADE20K, 1 … 150
    are the classes.

    Args:
        weights: fine-tuned checkpoint.
        inputs: image, or folder of images.
        out: folder to write to.
        config: of the model, a program that is run; unless given, the one kept in the weights,
            which is read as data.
        device: "auto", "cuda" or "cpu".

    Returns:
        The label maps written.

    Raises:
        UserError: weights, config, an image or the folder cannot be used, or a file that is not
            an earlier prediction would be overwritten; all but a damaged image is found before
            any work.
    """
    weights, inputs, out = Path(weights), Path(inputs), Path(out)
    check_checkpoint(weights)
    paths = _images(inputs)
    _check_outputs(paths, out)
    with separate_logs(speak=True):
        segmenter = open_segmenter(weights, config=config, device=device)
        with progress(paths, "predict", "images", stream=Voice()) as bar:
            return [_predict_one(segmenter, path, out) for path in bar]


def _predict_one(segmenter: Segmenter, path: Path, out: Path) -> Path:
    image = read_image(path)
    labels = segmenter.predict(path)
    target, panel = _outputs(path, out)
    _write(labels + segmenter.first_value, target)
    _write(paint_panel(image, None, labels, segmenter.classes, segmenter.palette), panel)
    return target


def _images(inputs: Path) -> list[Path]:
    if inputs.is_file():
        return [inputs]
    if not inputs.is_dir():
        raise UserError(f"{inputs}: no such image or folder")
    found = sorted(path for path in inputs.iterdir() if path.suffix.lower() in IMAGES)
    if not found:
        raise UserError(f"{inputs}: no images here ({', '.join(IMAGES)})")
    for path in found:
        if not path.is_file():
            raise UserError(f"{path}: not a regular file; remove it from the folder")
    return found


def _outputs(image: Path, out: Path) -> tuple[Path, Path]:
    """Return the files of one image: label map and painting."""
    return out / f"{image.stem}.png", out / f"{image.stem}_panel.png"


def _check_outputs(images: list[Path], out: Path) -> None:
    """Check that nothing but an earlier prediction would be overwritten, before any work.

    Raises:
        UserError: an output would replace a file that is not ours, or that of another image.
    """
    check_writable(out)
    if out.resolve() in {image.parent.resolve() for image in images}:
        raise UserError(f"--out {out}: contains the input images; choose another folder")
    makers: dict[Path, Path] = {}
    for image in images:
        for target in _outputs(image, out):
            if (other := makers.setdefault(target, image)) is not image:
                raise UserError(
                    f"{other} and {image}: both would be written to {target}; rename one"
                )
            check_output_file(target)
            if target.exists() and not _is_ours(target):
                raise UserError(
                    f"{target}: exists and was not written by `cae-seg predict`; "
                    "move it or choose another --out"
                )


def _is_ours(path: Path) -> bool:
    try:
        with Image.open(path) as picture:
            return picture.info.get("Software") == SIGNATURE
    except Exception:  # any other file, damaged or not
        return False


def _write(picture: np.ndarray, path: Path) -> None:
    mark = PngInfo()
    mark.add_text("Software", SIGNATURE)
    with atomic_writer(path) as stream:
        Image.fromarray(picture).save(stream, "PNG", pnginfo=mark)

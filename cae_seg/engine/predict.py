"""Paint the segmentation of any images, with the names of what was found."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from cae_seg.data.images import read_image
from cae_seg.data.visualize import (
    check_picture_file,
    draw_comparison,
    draw_labels,
    draw_overlay,
    write_picture,
)
from cae_seg.engine.segmenter import Segmenter, open_segmenter
from cae_seg.engine.validate import check_checkpoint
from cae_seg.errors import UserError
from cae_seg.files import check_writable
from cae_seg.progress import progress
from cae_seg.run.logs import SafeStream, configure_logging

IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")


def predict(
    weights: Path,
    inputs: Sequence[Path],
    out: Path,
    *,
    pictures: Sequence[str] = ("labels", "panel"),
    batch_size: int = 1,
    config: Path | None = None,
    device: str = "auto",
) -> list[Path]:
    """Segment images; write the pictures asked for, `<stem>_<name>.png`, labels as `<stem>.png`.

    A label map is a PNG of 8 bits with the values of the data set's own annotations (ADE20K: 1 …
    150 are the classes).

    Args:
        weights: fine-tuned checkpoint.
        inputs: images, or folders of images.
        out: folder to write to.
        pictures: which ones, names from `arguments.PICTURES`.
        batch_size: images that are segmented together.
        config: of the model, a program that is run; unless given, the one kept in the weights,
            which is read as data.
        device: "auto", "cuda" or "cpu".

    Returns:
        The files written.

    Raises:
        UserError: weights, config, an image or the folder cannot be used, or a file that is not
            an earlier prediction would be overwritten; all but a damaged image is found before
            any work.
    """
    weights, out = Path(weights), Path(out)
    check_checkpoint(weights)
    found = [image for path in inputs for image in _images(Path(path))]
    # Once each, though a file and its folder may both be given.
    images = list({image.resolve(): image for image in found}.values())
    outputs = {image: _outputs(image, out, pictures) for image in images}
    _check_outputs(outputs, out)
    with configure_logging(speak=True):
        segmenter = open_segmenter(weights, config=config, device=device)
        with progress(len(images), "predict", "images", stream=SafeStream()) as bar:
            for start in range(0, len(images), batch_size):
                batch = images[start : start + batch_size]
                for image, labels in zip(batch, segmenter.predict(batch), strict=True):
                    _write_pictures(image, labels, segmenter, outputs[image])
                bar.update(len(batch))
    return [target for targets in outputs.values() for target in targets.values()]


def _write_pictures(
    path: Path, labels: np.ndarray, segmenter: Segmenter, targets: Mapping[str, Path]
) -> None:
    image = read_image(path)
    for name, target in targets.items():
        write_picture(_paint(name, image, labels, segmenter), target)


def _paint(name: str, image: np.ndarray, labels: np.ndarray, segmenter: Segmenter) -> np.ndarray:
    match name:
        case "labels":
            return labels + segmenter.first_label
        case "colors":
            return draw_labels(labels, segmenter.palette)
        case "overlay":
            return draw_overlay(image, labels, segmenter.palette)
        case _:
            return draw_comparison(image, None, labels, segmenter.classes, segmenter.palette)


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


def _outputs(image: Path, out: Path, pictures: Sequence[str]) -> dict[str, Path]:
    """Return the files of one image by the name of the picture."""
    ends = {name: "" if name == "labels" else f"_{name}" for name in pictures}
    return {name: out / f"{image.stem}{end}.png" for name, end in ends.items()}


def _check_outputs(outputs: Mapping[Path, Mapping[str, Path]], out: Path) -> None:
    """Check that nothing but an earlier prediction would be overwritten, before any work.

    Raises:
        UserError: an output would replace a file that is not ours, or that of another image.
    """
    check_writable(out)
    if out.resolve() in {image.parent.resolve() for image in outputs}:
        raise UserError(f"--out {out}: contains the input images; choose another folder")
    makers: dict[Path, Path] = {}
    for image, targets in outputs.items():
        for target in targets.values():
            if (other := makers.setdefault(target, image)) is not image:
                raise UserError(
                    f"{other} and {image}: both would be written to {target}; rename one"
                )
            check_picture_file(target)

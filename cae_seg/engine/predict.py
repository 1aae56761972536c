"""Paint the segmentation of any images, with the names of what was found."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose
from PIL import Image, UnidentifiedImageError
from torch import nn

from cae_seg.data.visualize import paint_panel
from cae_seg.engine.old_evaluation import normalise
from cae_seg.engine.old_runner import build_model, load_config, load_weights
from cae_seg.errors import UserError
from cae_seg.files import atomic_writer
from cae_seg.launch.launcher import place
from cae_seg.machine import count_gpus
from cae_seg.models.pretrained.convert import load_checkpoint_file
from cae_seg.progress import progress
from cae_seg.run.logs import Voice, separate_logs

IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")


def predict(
    weights: Path, inputs: Path, out: Path, *, config: Path | None = None, device: str = "auto"
) -> list[Path]:
    """Segment images; write `<stem>.png` (label map) and `<stem>_panel.png` (painting, legend).

    A label map is a PNG of 8 bits with ADE20K's own values: 1 … 150 are the classes.

    Args:
        weights: fine-tuned checkpoint.
        inputs: image, or folder of images.
        out: folder to write to.
        config: of the model; the one kept in the weights unless given.
        device: "auto", "cuda" or "cpu".

    Returns:
        The label maps written.

    Raises:
        UserError: weights, config, an image or the folder cannot be used.
    """
    paths = _images(Path(inputs))
    kind = place(device, None, count_gpus()).kind
    with separate_logs(speak=True):
        settings = _config(Path(weights), config)
        model = build_model(settings, 0, start=False)
        load_weights(model, Path(weights))
        model.to(kind).eval()
        pipeline = _pipeline(settings)
        names = _class_names(settings)
        with progress(paths, "predict", "images", stream=Voice()) as bar:
            return [_predict_one(model, pipeline, names, path, Path(out)) for path in bar]


def _predict_one(
    model: nn.Module, pipeline: Compose, names: tuple[str, ...], path: Path, out: Path
) -> Path:
    try:
        image = np.asarray(Image.open(path).convert("RGB"))
    except (OSError, UnidentifiedImageError) as error:
        raise UserError(f"{path}: not a readable image; remove it or name another") from error
    item = pipeline({"img": image[..., ::-1].copy(), "img_path": str(path)})
    with torch.inference_mode():
        pictures = [normalise(model, item["inputs"], item["data_samples"])]
        labels = model.predict_labels(pictures, [image.shape[:2]])[0].cpu().numpy()
    target = out / f"{path.stem}.png"
    _write(labels + 1, target)
    _write(paint_panel(image, None, labels, names), out / f"{path.stem}_panel.png")
    return target


def _images(inputs: Path) -> list[Path]:
    if inputs.is_file():
        return [inputs]
    if not inputs.is_dir():
        raise UserError(f"{inputs}: no such image or folder")
    found = sorted(path for path in inputs.iterdir() if path.suffix.lower() in IMAGES)
    if not found:
        raise UserError(f"{inputs}: no images here ({', '.join(IMAGES)})")
    return found


def _config(weights: Path, config: Path | None) -> Config:
    """Return the config given, or the one that a training of ours has kept in its weights."""
    if config is not None:
        return load_config(config, {})
    meta = load_checkpoint_file(weights).get("meta") or {}
    text = meta.get("cfg")
    if not isinstance(text, str):
        raise UserError(f"{weights}: keeps no config; name it with --config")
    with _text_file(text) as path:
        return load_config(path, {})


@contextlib.contextmanager
def _text_file(text: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.py"
        path.write_text(text)
        yield path


def _pipeline(config: Config) -> Compose:
    """Return the test pipeline without reading files and annotations."""
    steps = config.val_dataloader.dataset.pipeline
    kept = [s for s in steps if s["type"] not in ("LoadImageFromFile", "LoadAnnotations")]
    return Compose([{"type": "LoadImageFromNDArray"}, *kept])


def _class_names(config: Config) -> tuple[str, ...]:
    from mmseg.registry import DATASETS

    dataset: Any = DATASETS.get(config.val_dataloader.dataset.type)
    return dataset.METAINFO["classes"]


def _write(picture: np.ndarray, path: Path) -> None:
    with atomic_writer(path) as stream:
        Image.fromarray(picture).save(stream, "PNG")

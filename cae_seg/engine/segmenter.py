"""A fine-tuned model ready to segment images, as the Python API and `predict` use it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose
from PIL import Image
from torch import nn

from cae_seg.data.images import read_image
from cae_seg.data.visualize import palette_of
from cae_seg.engine.acceleration import accelerate
from cae_seg.engine.build import build_model
from cae_seg.engine.classes import first_label, first_set, metainfo_of
from cae_seg.engine.config import load_config
from cae_seg.engine.validate import check_checkpoint
from cae_seg.engine.weights import load_weights
from cae_seg.engine.weights_config import config_of_weights
from cae_seg.errors import UserError
from cae_seg.machine import count_gpus, place
from cae_seg.models.pretrained.reading import load_checkpoint_file

ImageLike = str | Path | np.ndarray | Image.Image


class Segmenter:
    """A segmentation model with its test pipeline.

    Attributes:
        model: the network, in eval mode; with `accelerated=False` of mmsegmentation's own types
            around the backbone.
        config: its mmengine config, of model and validation data at least.
        classes: names of the classes, in the order of the labels.
        palette: their colours, (classes, 3) uint8 RGB.
        first_label: what the first class is called in annotation files, 0 or 1.
        device: "cuda" or "cpu".
    """

    def __init__(self, model: nn.Module, config: Config, device: str) -> None:
        self.model, self.config, self.device = model, config, device
        dataset = config.val_dataloader.dataset
        metainfo = metainfo_of(dataset)
        self.classes: tuple[str, ...] = tuple(metainfo["classes"])
        self.palette = palette_of(metainfo)
        self.first_label = first_label(dataset)
        self._pipeline = _pipeline(config)

    def predict(self, images: ImageLike | Sequence[ImageLike]) -> np.ndarray | list[np.ndarray]:
        """Segment one image or several.

        Args:
            images: paths, PIL images, or RGB arrays (H, W, 3) uint8; one, or a sequence of them.

        Returns:
            Labels (H, W) uint8, 0 the first class, for one image; a list of such for a sequence.

        Raises:
            UserError: an image cannot be read or resized, or is no RGB array of bytes.
        """
        if isinstance(images, str | Path | np.ndarray | Image.Image):
            return self._labels([images])[0]
        return self._labels(list(images))

    def _labels(self, images: list[ImageLike]) -> list[np.ndarray]:
        items = [self._item(image) for image in images]
        batch = {key: [item[key] for item in items] for key in ("inputs", "data_samples")}
        if not items:
            return []
        with torch.inference_mode():
            # Stock models take one size per batch; ours share windows between sizes.
            steps = [batch] if hasattr(self.model, "predict_views") else _singles(batch)
            samples = [sample for step in steps for sample in self.model.test_step(step)]
        return [sample.pred_sem_seg.data[0].cpu().numpy().astype(np.uint8) for sample in samples]

    def _item(self, image: ImageLike) -> dict[str, Any]:
        name = str(image) if isinstance(image, str | Path) else "image"
        pixels = _pixels(image, name)
        try:
            return self._pipeline({"img": pixels[..., ::-1].copy(), "img_path": name})
        except Exception as error:  # OpenCV refuses sizes that round to no pixel at all
            high, wide = pixels.shape[:2]
            raise UserError(f"{name}: {wide}×{high} cannot be resized; crop it") from error


def _singles(batch: dict[str, list]) -> list[dict[str, list]]:
    pairs = zip(batch["inputs"], batch["data_samples"], strict=True)
    return [{"inputs": [image], "data_samples": [sample]} for image, sample in pairs]


def _pixels(image: ImageLike, name: str) -> np.ndarray:
    """Return an image as RGB (H, W, 3) uint8."""
    if isinstance(image, str | Path):
        return read_image(Path(image))
    pixels = np.asarray(image.convert("RGB") if isinstance(image, Image.Image) else image)
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
        found = f"{pixels.shape} {pixels.dtype}"
        raise UserError(f"{name}: is {found}; pass an RGB array (H, W, 3) of uint8")
    return pixels


def _pipeline(config: Config) -> Compose:
    """Return the test pipeline without reading files and annotations."""
    steps = first_set(config.val_dataloader.dataset).pipeline
    kept = [s for s in steps if s["type"] not in ("LoadImageFromFile", "LoadAnnotations")]
    return Compose([{"type": "LoadImageFromNDArray"}, *kept])


def open_segmenter(
    weights: Path, *, config: Path | None = None, device: str = "auto", accelerated: bool = True
) -> Segmenter:
    """Build the model of fine-tuned weights and fill it.

    Args:
        weights: fine-tuned checkpoint.
        config: of the model, a program that is run; by default the one kept in the weights, which
            is read as data.
        device: "auto", "cuda" or "cpu".
        accelerated: use our faster types, which give the same results.

    Raises:
        UserError: weights or config cannot be used.
    """
    import cae_seg.registration  # noqa: F401

    weights = Path(weights)
    check_checkpoint(weights)
    kind = place(device, None, count_gpus()).kind
    if config is not None:
        settings = load_config(Path(config), {})
    else:
        settings = config_of_weights(weights, load_checkpoint_file(weights))
    if accelerated:
        accelerate(settings)
    model = build_model(settings, 0, start=False)
    load_weights(model, weights)
    return Segmenter(model.to(kind).eval(), settings, kind)

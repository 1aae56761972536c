"""The published train transforms in one piece, and the step from uint8 images to a batch.

`TrainTransform` draws the same random numbers in the same order as mmsegmentation's chain of
transforms and gives the same pixels, in about half the time: whole numbers in place of
floating-point images, histograms in place of sorting, no pixels resized that the crop leaves out,
no 64-bit label maps. `fast=False` runs
mmsegmentation's own chain.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import cv2
import mmseg.datasets.transforms  # noqa: F401  (registers the stock chain)
import numpy as np
import torch
from mmcv.image import rescale_size
from mmengine.dataset import Compose
from mmengine.registry import MODELS, TRANSFORMS
from mmengine.structures import PixelData
from mmseg.models.data_preprocessor import SegDataPreProcessor
from mmseg.structures import SegDataSample
from PIL import Image
from torch import Tensor

from cae_seg.data.batch import stage

IGNORE = 255
CROP_TRIES = 10
_LEVELS = np.arange(256, dtype=np.uint8)
_REDUCED = np.where((_LEVELS == 0) | (_LEVELS == IGNORE), IGNORE, _LEVELS - 1).astype(np.uint8)

META = (
    "img_path",
    "seg_map_path",
    "ori_shape",
    "img_shape",
    "scale_factor",
    "flip",
    "flip_direction",
    "reduce_zero_label",
)


def reduce_zero_label(label: np.ndarray) -> np.ndarray:
    """Turn a file's values into classes: 0 becomes 255 (ignored), 1 … 150 become 0 … 149.

    Returns a new uint8 array; the argument stays as it was.
    """
    return cv2.LUT(label, _REDUCED)


@TRANSFORMS.register_module()
class TrainTransform:
    """From file paths to one training sample: resize, crop, flip, distort.

    Args:
        scale: (long, short) side that the ratio is applied to, in pixels.
        ratio_range: the ratio is drawn uniformly from this range.
        crop_size: (height, width) of the crop; a smaller image is padded by the preprocessor.
        cat_max_ratio: a crop is drawn again (ten times at most) while one class covers this share.
        flip_prob: probability of a horizontal flip.
        brightness_delta: brightness shift is drawn from ± this, in grey levels.
        contrast_range: factor of contrast.
        saturation_range: factor of saturation.
        hue_delta: hue shift is drawn from ± this, in steps of two degrees.
        fast: whether to run the quick path; the numbers are the same either way.
    """

    def __init__(
        self,
        scale: tuple[int, int] = (2048, 512),
        ratio_range: tuple[float, float] = (0.5, 2.0),
        crop_size: tuple[int, int] = (512, 512),
        cat_max_ratio: float = 0.75,
        flip_prob: float = 0.5,
        brightness_delta: int = 32,
        contrast_range: tuple[float, float] = (0.5, 1.5),
        saturation_range: tuple[float, float] = (0.5, 1.5),
        hue_delta: int = 18,
        fast: bool = True,
    ) -> None:
        self.scale, self.ratio_range = tuple(scale), tuple(ratio_range)
        self.crop_size, self.cat_max_ratio = tuple(crop_size), cat_max_ratio
        self.flip_prob = flip_prob
        self.distortion = {
            "brightness_delta": brightness_delta,
            "contrast_range": tuple(contrast_range),
            "saturation_range": tuple(saturation_range),
            "hue_delta": hue_delta,
        }
        self.fast = fast
        self._scratch: dict[tuple[int, ...], np.ndarray] = {}
        # The loader forks its workers, which OpenCV's threads do not survive: they would be waited
        # for without end. A worker is to use one core anyway.
        cv2.setNumThreads(0)
        self._stock = None if fast else Compose(self.stock_pipeline())

    def stock_pipeline(self) -> list[dict]:
        """Return mmsegmentation's chain with the same parameters, as dicts of its default scope."""
        return [
            {"type": "LoadImageFromFile"},
            {"type": "LoadAnnotations"},
            {
                "type": "RandomResize",
                "scale": self.scale,
                "ratio_range": self.ratio_range,
                "keep_ratio": True,
            },
            {
                "type": "RandomCrop",
                "crop_size": self.crop_size,
                "cat_max_ratio": self.cat_max_ratio,
            },
            {"type": "RandomFlip", "prob": self.flip_prob},
            {"type": "PhotoMetricDistortion", **self.distortion},
            {"type": "PackSegInputs"},
        ]

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        """Read and transform the pair that `results` names.

        Returns:
            `inputs`: (3, H, W) uint8 BGR; `data_samples`: `gt_sem_seg` (1, H, W), uint8 on the
            quick path and int64 on the stock one, and the meta information of the sample.
        """
        if self._stock is not None or results.get("label_map"):
            self._stock = self._stock or Compose(self.stock_pipeline())
            return self._stock(results)
        image, label = _read(results["img_path"]), _read(results["seg_map_path"], label=True)
        table = _REDUCED if results["reduce_zero_label"] else _LEVELS
        original = image.shape[:2]
        size = self._draw_size(original)
        factor = (size[0] / original[1], size[1] / original[0])
        window, label = self._choose_crop(label, size, table)
        image, label = self._resized_crop(image, size, window), cv2.LUT(label, table)
        flip = bool(np.random.random_sample() < self.flip_prob)
        if flip:
            image, label = cv2.flip(image, 1), cv2.flip(label, 1)
        image = distort(image, **self.distortion)
        meta = results | {
            "ori_shape": original,
            "img_shape": image.shape[:2],
            "scale_factor": factor,
            "flip": flip,
            "flip_direction": "horizontal" if flip else None,
        }
        return _pack(image, label, meta)

    def _draw_size(self, shape: tuple[int, int]) -> tuple[int, int]:
        low, high = self.ratio_range
        ratio = np.random.random_sample() * (high - low) + low
        scale = (int(self.scale[0] * ratio), int(self.scale[1] * ratio))
        return rescale_size(shape[::-1], scale)

    def _choose_crop(
        self, label: np.ndarray, size: tuple[int, int], table: np.ndarray
    ) -> tuple[tuple[slice, slice], np.ndarray]:
        """Return a window of the pair resized to `size` (width, height), and the label in it."""
        window = self._draw_crop(size)
        crop = self._resized_crop(label, size, window)
        if self.cat_max_ratio >= 1:
            return window, crop
        for _ in range(CROP_TRIES):
            histogram = cv2.calcHist([crop], [0], None, [256], [0, 256]).ravel()
            counts = histogram[(table != IGNORE) & (histogram > 0)].astype(np.float64)
            if counts.size > 1 and counts.max() / counts.sum() < self.cat_max_ratio:
                break
            window = self._draw_crop(size)
            crop = self._resized_crop(label, size, window)
        return window, crop

    def _resized_crop(
        self, array: np.ndarray, size: tuple[int, int], window: tuple[slice, slice]
    ) -> np.ndarray:
        """Return a window of an image or label resized to `size` (width, height).

        What is right of the window and below it is left out. What comes before it is not: there
        OpenCV's rounding of the coordinates would begin elsewhere.
        """
        shape = array.shape[1::-1]
        factors = [new / old for new, old in zip(size, shape, strict=True)]
        # Two pixels more, which the last ones of the window may be interpolated from.
        width, height = (
            min(side, int(part.stop / factor) + 3)
            for side, part, factor in zip(shape, reversed(window), factors, strict=True)
        )
        canvas = self._canvas(
            round(height * factors[1]), round(width * factors[0]), array.shape[2:]
        )
        part = array[:height, :width]
        method = cv2.INTER_LINEAR if array.ndim == 3 else cv2.INTER_NEAREST
        return cv2.resize(part, None, canvas, *factors, interpolation=method)[window]

    def _canvas(self, height: int, width: int, channels: tuple[int, ...]) -> np.ndarray:
        """Return memory for an array that does not outlive the call: fresh pages cost much."""
        shape = (height, width, *channels)
        size = math.prod(shape)
        scratch = self._scratch.get(channels)
        if scratch is None or scratch.size < size:
            scratch = self._scratch[channels] = np.empty(size, np.uint8)
        return scratch[:size].reshape(shape)

    def _draw_crop(self, size: tuple[int, int]) -> tuple[slice, slice]:
        starts = [
            np.random.randint(0, max(side - crop, 0) + 1)
            for side, crop in zip(reversed(size), self.crop_size, strict=True)
        ]
        return tuple(
            slice(start, start + crop) for start, crop in zip(starts, self.crop_size, strict=True)
        )


def distort(
    image: np.ndarray,
    brightness_delta: int = 32,
    contrast_range: Sequence[float] = (0.5, 1.5),
    saturation_range: Sequence[float] = (0.5, 1.5),
    hue_delta: int = 18,
) -> np.ndarray:
    """Distort brightness, contrast, saturation and hue at random, each with probability one half.

    Args:
        image: (H, W, 3) uint8 BGR; not changed.
        brightness_delta: as `TrainTransform` takes it, like the rest.
    """
    if np.random.randint(2):
        image = _brighten(image, np.random.uniform(-brightness_delta, brightness_delta))
    contrast_first = np.random.randint(2)
    if contrast_first and np.random.randint(2):
        image = _scale(image, np.random.uniform(*contrast_range))
    if np.random.randint(2):
        factor = np.random.uniform(*saturation_range)
        image = _through_hsv(image, 1, lambda channel: _scale(channel, factor))
    if np.random.randint(2):
        shift = np.random.randint(-hue_delta, hue_delta)
        table = ((_LEVELS.astype(int) + shift) % 180).astype(np.uint8)
        image = _through_hsv(image, 0, lambda channel: cv2.LUT(channel, table))
    if not contrast_first and np.random.randint(2):
        image = _scale(image, np.random.uniform(*contrast_range))
    return image


# The published code computes in single precision and cuts fractions off. Whole numbers, or rounding
# half a step lower, give the same, unless a fraction is so near to one that its rounding decides.
_NEAR_ONE = 0.9998


def _brighten(image: np.ndarray, shift: float) -> np.ndarray:
    if shift % 1 < _NEAR_ONE:
        return cv2.add(image, (np.floor(shift),) * 4)
    return cv2.LUT(image, _table(shift=shift))


def _scale(image: np.ndarray, factor: float) -> np.ndarray:
    if (_LEVELS * factor % 1 < _NEAR_ONE).all():
        return cv2.convertScaleAbs(image, None, factor, -0.4999)
    return cv2.LUT(image, _table(factor=factor))


def _table(factor: float = 1, shift: float = 0) -> np.ndarray:
    return np.clip(_LEVELS.astype(np.float32) * factor + shift, 0, 255).astype(np.uint8)


def _through_hsv(
    image: np.ndarray, channel: int, change: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)
    cv2.insertChannel(change(cv2.extractChannel(hsv, channel)), hsv, channel)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)


def _read(path: str, label: bool = False) -> np.ndarray:
    content = np.fromfile(path, np.uint8)
    array = cv2.imdecode(content, cv2.IMREAD_UNCHANGED if label else cv2.IMREAD_COLOR)
    if label and array is not None and array.ndim == 3:
        array = _palette_indices(path)
    if array is None or (label and (array.ndim != 2 or array.dtype != np.uint8)):
        wanted = "an 8-bit annotation of one channel" if label else "an image"
        raise ValueError(f"{path}: not {wanted} any more; prepare the data again")
    return array


def _palette_indices(path: str) -> np.ndarray | None:
    """Return the indices of a PNG with a palette, which OpenCV turns into colours."""
    with Image.open(path) as picture:
        return np.array(picture) if picture.mode == "P" else None


def _pack(image: np.ndarray, label: np.ndarray, meta: dict[str, Any]) -> dict[str, Any]:
    planes = np.empty((3, *image.shape[:2]), np.uint8)
    cv2.split(image, list(planes))
    sample = SegDataSample()
    for key in META:  # as `metainfo=` does, without its deep copies
        if key in meta:
            sample.set_field(meta[key], key, field_type="metainfo")
    sample.gt_sem_seg = PixelData(data=torch.from_numpy(label)[None])
    return {"inputs": torch.from_numpy(planes), "data_samples": sample}


@MODELS.register_module()
class BatchPreprocessor(SegDataPreProcessor):
    """mmsegmentation's preprocessor, that normalises straight into the batch.

    Takes the same arguments and gives the same numbers; images that differ in size (to be padded)
    go the stock way, and with `fast=False` all do. Labels become int64 here, on the device, instead
    of in the loader's workers.
    """

    def __init__(self, *args: Any, fast: bool = True, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fast = fast

    def forward(self, data: dict, training: bool = False) -> dict[str, Any]:
        """Move, normalise and stack a batch; pad it where that is asked for.

        Args:
            data: `inputs` (list of (3, H, W), or a batch) and `data_samples`.
            training: whether to pad to `size`, as training does.
        """
        takes = self._takes(data["inputs"], training)
        if takes and self.device.type == "cuda":
            result = stage(data, self.device)
            result["inputs"] = self._normalise_at_once(result["inputs"])
        elif takes:
            result = self.cast_data(data)
            result["inputs"] = self._normalise(result["inputs"])
        else:
            result = super().forward(data, training)
        if takes and training:
            _tell_shapes(result["data_samples"], result["inputs"])
        _widen_labels(result.get("data_samples") or ())
        return result

    def _takes(self, inputs: Sequence[Tensor] | Tensor, training: bool) -> bool:
        shapes = {tuple(image.shape) for image in inputs}
        if (
            not self.fast
            or len(shapes) != 1
            or next(iter(shapes))[0] != 3
            or not self._enable_normalize
        ):
            return False
        if training:
            return self.size is not None and next(iter(shapes))[1:] == tuple(self.size)
        return not self.test_cfg

    def _normalise(self, images: Sequence[Tensor] | Tensor) -> Tensor:
        # Image by image, in place: on the CPU each then stays in the cache over all steps.
        batch = torch.empty(len(images), *images[0].shape, device=self.device)
        for row, image in zip(batch, images, strict=True):
            row.copy_(image.flip(0) if self._channel_conversion else image)
            row.sub_(self.mean).div_(self.std)
        return batch

    def _normalise_at_once(self, images: Tensor) -> Tensor:
        if self._channel_conversion:
            images = images.flip(1)
        return (images - self.mean).div_(self.std)


def _widen_labels(samples: Sequence[SegDataSample]) -> None:
    """Turn labels into int64: parts of one tensor all at once."""
    parts = [sample.gt_sem_seg for sample in samples if "gt_sem_seg" in sample]
    whole = parts[0].data._base if parts else None
    stacked = whole is not None and whole.shape == (len(parts), *parts[0].data.shape)
    if not stacked or any(part.data._base is not whole for part in parts):
        for part in parts:
            part.data = part.data.long()
        return
    for part, label in zip(parts, whole.long(), strict=True):
        part.data = label


def _tell_shapes(samples: Sequence[SegDataSample], batch: Tensor) -> None:
    shape = tuple(batch.shape[-2:])
    for sample in samples:
        sample.set_metainfo({"img_shape": shape, "pad_shape": shape, "padding_size": (0, 0, 0, 0)})


def train_transform_of(pipeline: Sequence[dict]) -> dict[str, Any] | None:
    """Return the `TrainTransform` that does what a stock train pipeline does, if there is one.

    Args:
        pipeline: configs of transforms.
    """
    settings: dict[str, Any] = {}
    if [step.get("type") for step in pipeline] != list(_STOCK_STEPS):
        return None
    for step, taken in zip(pipeline, _STOCK_STEPS.values(), strict=True):
        given = {key: value for key, value in step.items() if key != "type"}
        if not given.keys() <= taken.keys():
            return None
        for key, name in taken.items():
            if isinstance(name, str):
                if key in given:
                    settings[name] = given[key]
            elif given.get(key, None if key in _NO_DEFAULT else name[0]) not in name:
                return None
    if not {"scale", "crop_size"} <= settings.keys():
        return None
    # The stock defaults where they differ from ours.
    defaults = {"cat_max_ratio": 1.0, "ratio_range": None, "flip_prob": None}
    settings = {**defaults, **settings}
    if settings["ratio_range"] is None or not isinstance(settings["flip_prob"], float | int):
        return None
    return {"type": "TrainTransform", **settings}


# Type of each stock step → its settings that are handed on (by the name of ours), or the values
# that are accepted.
_STOCK_STEPS: dict[str, dict[str, str | tuple]] = {
    "LoadImageFromFile": {"backend_args": (None,)},
    "LoadAnnotations": {"reduce_zero_label": (None, True, False), "backend_args": (None,)},
    "RandomResize": {"scale": "scale", "ratio_range": "ratio_range", "keep_ratio": (True,)},
    "RandomCrop": {
        "crop_size": "crop_size",
        "cat_max_ratio": "cat_max_ratio",
        "ignore_index": (255,),
    },
    "RandomFlip": {"prob": "flip_prob", "direction": ("horizontal",)},
    "PhotoMetricDistortion": {
        name: name
        for name in ("brightness_delta", "contrast_range", "saturation_range", "hue_delta")
    },
    "PackSegInputs": {},
}
_NO_DEFAULT = ("keep_ratio",)  # the stock default is one that we do not have

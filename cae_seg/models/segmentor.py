"""The segmentor: backbone and heads, and from images to labels by sliding windows."""

import copy
import functools
import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.config import ConfigDict
from mmengine.structures import PixelData
from mmseg.models.segmentors import EncoderDecoder
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from torch import Tensor, nn

from cae_seg.errors import UserError
from cae_seg.models.accelerate import Switch, Switches, resolve, switch
from cae_seg.models.heads.upernet import FastFCNHead, FastUPerHead
from cae_seg.models.layers.batch_norm import counted_together
from cae_seg.models.layers.replace import replace_layers
from cae_seg.models.ops.convolution import Unexpanded
from cae_seg.models.ops.cpu.memory import keep_freed_memory
from cae_seg.models.ops.resize import resize_bilinear
from cae_seg.models.ops.windows import CoarseLogits, InferenceView, WindowAxis, argmax_labels

_WINDOWS_PER_BATCH = {"cpu": 2, "cuda": 16}
_IMAGES_PER_BATCH = {"cpu": 1, "cuda": 8}
_OUR_HEADS = (FastUPerHead.__name__, FastFCNHead.__name__)


@MODELS.register_module()
class FastEncoderDecoder(EncoderDecoder):
    """mmsegmentation's `EncoderDecoder` with the published `pretrained` and faster inference.

    Args:
        backbone: config of the backbone.
        decode_head: config of the head that predicts.
        auxiliary_head: config of the head that only adds a loss in training.
        pretrained: path of a checkpoint for the backbone; becomes its `init_cfg`.
        fast_paths: see `cae_seg.models.accelerate`; handed on to the heads.
        test_cfg: `mode` ("slide" or "whole"), `crop_size`, `stride`; `windows_per_batch` (images
            of crop size in one forward pass); `seg_logits=True` to return full-size logits too.
        kwargs: as `EncoderDecoder`.
    """

    def __init__(
        self,
        backbone: Mapping[str, Any],
        decode_head: Mapping[str, Any],
        auxiliary_head: Mapping[str, Any] | None = None,
        *,
        pretrained: str | None = None,
        fast_paths: Mapping[str, Switch] | Switch | None = None,
        test_cfg: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        switches = resolve(fast_paths)
        super().__init__(
            backbone=_with_checkpoint(backbone, pretrained),
            decode_head=_with_switches(decode_head, switches),
            auxiliary_head=_with_switches(auxiliary_head, switches),
            test_cfg=ConfigDict(test_cfg or {"mode": "whole"}),
            **kwargs,
        )
        self.fast_paths = switches
        replace_layers(self)
        switch(self, switches)
        self._unexpanded = self._read_by_laterals() if switches["merged_laterals"] else ()

    def _read_by_laterals(self) -> tuple[int, ...]:
        """Return the deconvolved levels that nothing reads but a lateral convolution of UPerHead.

        Heads of other types may read what they like.
        """
        head, auxiliary = self.decode_head, getattr(self, "auxiliary_head", None) or []
        others = list(auxiliary) if isinstance(auxiliary, list | nn.ModuleList) else [auxiliary]
        known = type(head) is FastUPerHead and all(type(h) is FastFCNHead for h in others)
        levels = getattr(self.neck if self.with_neck else self.backbone, "deconvolved", ())
        if not known or not levels:
            return ()
        read = [i for h in (head, *others) for i in _indices(h)]
        laterals = _indices(head)[:-1]
        return tuple(i for i in levels if i in laterals and read.count(i) == 1)

    @property
    def active_fast_paths(self) -> list[str]:
        """Return the names of the fast paths that are on, for the run's record."""
        return [name for name, switch in self.fast_paths.items() if switch]

    def extract_feat(
        self, inputs: Tensor, unexpanded: Collection[int] = ()
    ) -> Sequence[Tensor | Unexpanded]:
        """Return the maps that heads read of images (N, 3, H, W).

        Args:
            inputs: the images.
            unexpanded: levels to leave before their deconvolution, which our heads do.
        """
        if self.fast_paths["kept_memory"] and inputs.device.type == "cpu":
            keep_freed_memory()
        if not unexpanded:
            return super().extract_feat(inputs)
        if self.with_neck:
            return self.neck(self.backbone(inputs), unexpanded)
        return self.backbone(inputs, unexpanded)

    def encode_decode(self, inputs: Tensor, batch_img_metas: list[dict]) -> Tensor:
        """Return the logits of images (N, 3, H, W) at their own size, as `EncoderDecoder`."""
        maps = self.extract_feat(inputs, self._unexpanded)
        return self.decode_head.predict(maps, batch_img_metas, self.test_cfg)

    def _forward(self, inputs: Tensor, data_samples: list[SegDataSample] | None = None) -> Tensor:
        return self.decode_head(self.extract_feat(inputs, self._unexpanded))

    def loss(self, inputs: Tensor, data_samples: list[SegDataSample]) -> dict[str, Tensor]:
        """Return the losses of a batch (N, 3, H, W), as `EncoderDecoder`."""
        with counted_together(self):
            maps = self.extract_feat(inputs, self._unexpanded)
            losses = self._decode_head_forward_train(maps, data_samples)
            if self.with_auxiliary_head:
                losses |= self._auxiliary_head_forward_train(maps, data_samples)
        return losses

    def parse_losses(self, losses: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """Sum the losses, as mmengine; what is a single number already is not averaged."""
        if not all(isinstance(value, Tensor) and value.numel() == 1 for value in losses.values()):
            return super().parse_losses(losses)
        losses = {name: value.reshape(()) for name, value in losses.items()}
        total = functools.reduce(torch.add, [v for name, v in losses.items() if "loss" in name])
        return total, {"loss": total, **losses}

    @torch.inference_mode()
    def predict_labels(
        self,
        images: Sequence[Tensor | Sequence[Tensor]],
        sizes: Sequence[tuple[int, int]],
        aug: bool = False,
    ) -> list[Tensor]:
        """Predict labels at the original sizes; the model should be in eval mode.

        Args:
            images: normalised images (3, h, w), or for each the same image at several scales, whose
                soft-maxes are averaged.
            sizes: original (height, width) of each image.
            aug: also average over the horizontally flipped images.

        Returns:
            Labels (height, width), uint8, on the model's device.
        """
        device = next(self.parameters()).device
        flips = (False, True) if aug else (False,)
        views = [
            [
                self._view(scale.to(device), flipped)
                for scale in ([image] if isinstance(image, Tensor) else image)
                for flipped in flips
            ]
            for image in images
        ]
        return self._labels(views, sizes)

    def _labels(
        self, views: Sequence[Sequence[InferenceView]], sizes: Sequence[tuple[int, int]]
    ) -> list[Tensor]:
        """Return labels (height, width) of images, each seen in one or several views."""
        if not self.fast_paths["fused_prediction"]:
            return [self._plain_labels(v, size) for v, size in zip(views, sizes, strict=True)]
        windows = (window for v in views for view in v for window in view.windows())
        logits = self._window_logits(windows)
        return [
            argmax_labels([self._join(view, logits, tuple(size)) for view in v])
            for v, size in zip(views, sizes, strict=True)
        ]

    @property
    def images_per_batch(self) -> int:
        """Images of an evaluation whose windows share forward passes; their sizes may differ."""
        return _IMAGES_PER_BATCH.get(next(self.parameters()).device.type, 1)

    def val_step(self, data: dict[str, list]) -> list[SegDataSample]:
        """Predict images (3, h, w) uint8 of any sizes, as a loader hands them over."""
        return self.test_step(data)

    def test_step(self, data: dict[str, list]) -> list[SegDataSample]:
        """Predict images (3, h, w) uint8 of any sizes, as a loader hands them over."""
        if self.test_cfg.get("seg_logits", False):
            return super().test_step(data)
        return self.predict_views([data["inputs"]], [data["data_samples"]])

    @torch.inference_mode()
    def predict_views(
        self, inputs: Sequence[Sequence[Tensor]], data_samples: Sequence[Sequence[SegDataSample]]
    ) -> list[SegDataSample]:
        """Predict images from one or several augmented views, whose soft-maxes are averaged.

        Args:
            inputs: for each augmentation, the images (3, h, w) uint8.
            data_samples: likewise, their samples; `flip` tells the flipped ones.

        Returns:
            The samples of the first augmentation, with `pred_sem_seg` at `ori_shape`.
        """
        device = next(self.parameters()).device
        views = [
            [self._view_of(image, sample, device) for image, sample in zip(*pair, strict=True)]
            for pair in zip(zip(*inputs, strict=True), zip(*data_samples, strict=True), strict=True)
        ]
        samples = list(data_samples[0])
        sizes = [tuple(sample.ori_shape[:2]) for sample in samples]
        for sample, label in zip(samples, self._labels(views, sizes), strict=True):
            sample.pred_sem_seg = PixelData(data=label.long()[None])
        return samples

    def _view_of(self, image: Tensor, sample: SegDataSample, device: torch.device) -> InferenceView:
        """Normalise one image; a flipped one is flipped back, since views flip by themselves."""
        batch = {"inputs": [image], "data_samples": [copy.copy(sample)]}
        normalised = self.data_preprocessor(batch, training=False)["inputs"][0].to(device)
        flipped = bool(sample.metainfo.get("flip"))
        return self._view(normalised.flip(-1) if flipped else normalised, flipped)

    def predict(
        self, inputs: Tensor, data_samples: list[SegDataSample] | None = None
    ) -> list[SegDataSample]:
        """Predict a batch (N, 3, h, w) into `pred_sem_seg` at the samples' `ori_shape`.

        Full-size `seg_logits` are added only with `test_cfg.seg_logits`, or without data samples.
        """
        if data_samples is None or self.test_cfg.get("seg_logits", False):
            return super().predict(inputs, data_samples)
        images = [_without_padding(x, s) for x, s in zip(inputs, data_samples, strict=True)]
        sizes = [tuple(sample.ori_shape[:2]) for sample in data_samples]
        labels = self.predict_labels(images, sizes)
        for sample, label in zip(data_samples, labels, strict=True):
            if sample.metainfo.get("flip"):
                axis = -1 if sample.flip_direction == "horizontal" else -2
                label = label.flip(axis)
            sample.pred_sem_seg = PixelData(data=label.long()[None])
        return data_samples

    def slide_inference(self, inputs: Tensor, batch_img_metas: list[dict]) -> Tensor:
        """Return logits (N, classes, h, w), averaged where windows overlap."""
        views = [self._view(image, False) for image in inputs]
        size = tuple(inputs.shape[2:])
        if not self.fast_paths["fused_prediction"]:
            return torch.cat([self._plain_logits(view) for view in views])
        logits = self._window_logits(window for view in views for window in view.windows())
        return torch.stack([self._join(view, logits, size).full() for view in views])

    def _view(self, image: Tensor, flipped: bool) -> InferenceView:
        crop, stride = tuple(image.shape[1:]), tuple(image.shape[1:])
        if self.test_cfg.mode == "slide":
            crop, stride = self.test_cfg.crop_size, self.test_cfg.stride
        rows, cols = (WindowAxis(*axis) for axis in zip(image.shape[1:], crop, stride, strict=True))
        return InferenceView(image, (rows, cols), flipped)

    def _window_logits(self, windows: Iterator[Tensor]) -> Iterator[Tensor]:
        """Yield the logits (h, w, classes) of each window, in order, several windows at a time."""
        for _, alike in itertools.groupby(windows, key=lambda window: window.shape):
            while batch := list(itertools.islice(alike, self._windows_per_batch())):
                logits = self._forward(torch.stack(batch))
                yield from logits.permute(0, 2, 3, 1).float().contiguous()

    def _windows_per_batch(self) -> int:
        device = next(self.parameters()).device.type
        return self.test_cfg.get("windows_per_batch", _WINDOWS_PER_BATCH.get(device, 1))

    def _join(
        self, view: InferenceView, logits: Iterator[Tensor], size: tuple[int, int]
    ) -> CoarseLogits:
        count = len(view.axes[0].starts) * len(view.axes[1].starts)
        mine = list(itertools.islice(logits, count))
        return CoarseLogits.join(view, mine, size, self.align_corners)

    def _plain_logits(self, view: InferenceView) -> Tensor:
        """Return logits (1, classes, h, w) of a view by mmsegmentation's own loop."""
        image = view.image.flip(-1) if view.flipped else view.image
        missing = [max(axis.crop - axis.length, 0) for axis in view.axes]
        padded = F.pad(image, (0, missing[1], 0, missing[0]))[None]
        meta = {"ori_shape": padded.shape[2:], "img_shape": padded.shape[2:]}
        if self.test_cfg.mode == "slide":
            logits = super().slide_inference(padded, [meta])
        else:
            logits = self.whole_inference(padded, [meta])
        logits = logits[..., : image.shape[1], : image.shape[2]]
        return logits.flip(-1) if view.flipped else logits

    def _plain_labels(self, views: Sequence[InferenceView], size: tuple[int, int]) -> Tensor:
        """Return labels (height, width) by way of full-size logits and soft-maxes."""
        total = 0
        for view in views:
            logits = resize_bilinear(self._plain_logits(view).float(), size, self.align_corners)
            total = total + (logits.softmax(1) if len(views) > 1 else logits)
        return total[0].argmax(0).to(torch.uint8)


def _with_checkpoint(backbone: Mapping[str, Any], pretrained: str | None) -> dict[str, Any]:
    backbone = dict(backbone)
    if not pretrained:
        return backbone
    if backbone.get("init_cfg"):
        raise UserError(
            f"model.pretrained: {pretrained} is given, but model.backbone.init_cfg too; leave one"
        )
    return backbone | {"init_cfg": {"type": "Pretrained", "checkpoint": str(pretrained)}}


def _with_switches(head: Any, switches: Switches) -> Any:
    """Hand the switches on to a head of ours, or to each of several."""
    if isinstance(head, list | tuple):
        return [_with_switches(each, switches) for each in head]
    if head is None or head["type"] not in _OUR_HEADS:
        return head
    return {"fast_paths": switches, **head}


def _indices(head: nn.Module) -> list[int]:
    """Return the levels of a pyramid that a head reads, counted from the finest."""
    chosen = head.in_index if isinstance(head.in_index, list | tuple) else [head.in_index]
    return [index % 4 for index in chosen]


def _without_padding(image: Tensor, sample: SegDataSample) -> Tensor:
    """Cut away what the data preprocessor filled up: (3, H, W) → (3, h, w)."""
    meta = sample.metainfo
    left, right, top, bottom = meta.get("img_padding_size", meta.get("padding_size", [0] * 4))
    return image[:, top : image.shape[1] - bottom, left : image.shape[2] - right]

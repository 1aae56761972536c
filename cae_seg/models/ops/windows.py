"""Sliding windows: cutting an image, and joining the windows' logits into labels.

A window's logits are upsampled to the window, averaged with its neighbours', resized to the size of
the original image, possibly flipped back. Each step is linear and acts on each axis alone, and as
the windows stand on a grid, all of them together are one matrix per axis. Labels are read off tile
by tile: no plane of the image's size with a class axis is ever made.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cae_seg.models.ops.resize import bands, interpolation_matrix, tile_shape, upsample_tile


@dataclass(frozen=True)
class Axis:
    """Windows along one axis of an image, in pixels."""

    length: int  # of the image
    crop: int
    stride: int

    @property
    def starts(self) -> list[int]:
        """Return where windows begin; the last is moved back to end with the image."""
        count = max(self.length - self.crop + self.stride - 1, 0) // self.stride + 1
        last = max(self.length - self.crop, 0)
        return [min(i * self.stride, last) for i in range(count)]


@dataclass(frozen=True)
class View:
    """One pass over an image: the image at some scale, flipped or not."""

    image: Tensor  # 3, h, w, normalised
    axes: tuple[Axis, Axis]
    flipped: bool = False

    def windows(self) -> list[Tensor]:
        """Cut the windows (3, crop, crop), row by row.

        A side shorter than the crop is filled up with zeros at its end, the mean colour, as the
        training crops are; what is predicted there is thrown away.
        """
        image = self.image.flip(-1) if self.flipped else self.image
        rows, cols = self.axes
        missing = [max(axis.crop - axis.length, 0) for axis in self.axes]
        image = F.pad(image, (0, missing[1], 0, missing[0]))
        return [
            image[:, top : top + rows.crop, left : left + cols.crop]
            for top in rows.starts
            for left in cols.starts
        ]


@dataclass(frozen=True)
class Coarse:
    """The logits of a view's windows side by side, and the matrices that spread them out."""

    logits: Tensor  # rows · h, cols · w, classes
    rows: np.ndarray  # height of the output, rows · h
    cols: np.ndarray

    @classmethod
    def join(
        cls, view: View, logits: Sequence[Tensor], size: tuple[int, int], align_corners: bool
    ) -> "Coarse":
        """Lay out the logits (h, w, classes) of `view.windows()` for an output of `size`."""
        h, w, classes = logits[0].shape
        grid = tuple(len(axis.starts) for axis in view.axes)
        joined = torch.stack(list(logits)).view(*grid, h, w, classes).transpose(1, 2)
        rows, cols = (
            spreading_matrix(axis, side, out, align_corners)
            for axis, side, out in zip(view.axes, (h, w), size, strict=True)
        )
        if view.flipped:
            cols = cols[::-1]
        return cls(joined.reshape(grid[0] * h, grid[1] * w, classes), rows, cols)

    def full(self) -> Tensor:
        """Return the logits spread out, (classes, *size)."""
        rows, cols = self._on_device()
        return upsample_tile(self.logits[None], rows, cols)[0].permute(2, 0, 1)

    def _on_device(self) -> tuple[Tensor, Tensor]:
        return tuple(
            torch.from_numpy(np.ascontiguousarray(m, dtype=np.float32)).to(self.logits.device)
            for m in (self.rows, self.cols)
        )


@lru_cache(maxsize=256)
def spreading_matrix(axis: Axis, coarse: int, size: int, align_corners: bool) -> np.ndarray:
    """Return the matrix from the windows' logits along an axis to the output.

    Args:
        axis: the windows.
        coarse: logits per window.
        size: length of the output.
        align_corners: of both resizings.

    Returns:
        (size, windows · coarse): upsample to the window, average where windows overlap, resize.
    """
    upsample = interpolation_matrix(coarse, axis.crop, align_corners)
    starts = axis.starts
    spread = np.zeros((axis.length, len(starts) * coarse))
    covered = np.zeros((axis.length, 1))
    for i, start in enumerate(starts):
        stop = min(start + axis.crop, axis.length)
        spread[start:stop, i * coarse : (i + 1) * coarse] = upsample[: stop - start]
        covered[start:stop] += 1
    spread /= covered
    if size != axis.length:
        spread = interpolation_matrix(axis.length, size, align_corners) @ spread
    spread.setflags(write=False)
    return spread


def labels_of(views: Sequence[Coarse]) -> Tensor:
    """Return the most probable class of each pixel, (height, width), uint8.

    One view: the arg-max of its logits. Several: that of the mean of their soft-maxes.
    """
    logits = views[0].logits
    height, width = len(views[0].rows), len(views[0].cols)
    labels = torch.empty(height, width, dtype=torch.uint8, device=logits.device)
    tile = tile_shape(logits, (height, width))
    matrices = [view._on_device() for view in views]
    all_rows, all_cols = (
        list(zip(*(bands(getattr(view, name), side) for view in views), strict=True))
        for name, side in (("rows", tile[0]), ("cols", tile[1]))
    )
    for row_bands in all_rows:
        for col_bands in all_cols:
            scores = None
            for view, (rows, cols), (out_rows, in_rows), (out_cols, in_cols) in zip(
                views, matrices, row_bands, col_bands, strict=True
            ):
                part = view.logits[None, in_rows, in_cols]
                fine = upsample_tile(part, rows[out_rows, in_rows], cols[out_cols, in_cols])
                if len(views) > 1:
                    fine = fine.softmax(-1)
                scores = fine if scores is None else scores.add_(fine)
            labels[out_rows, out_cols] = scores[0].argmax(-1)
    return labels

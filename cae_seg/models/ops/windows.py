"""Sliding windows: cutting an image, and joining the windows' logits into labels.

A window's logits are upsampled to the window, averaged with its neighbours', resized to the size of
the original image, possibly flipped back. Each step is linear and acts on each axis alone, and as
the windows form a grid, all of them together are one matrix per axis, with a few entries a row.
Labels are read off tile by tile: no plane of the image's size with a class axis is ever made.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy import sparse
from torch import Tensor

from cae_seg.models.ops.cache import cached
from cae_seg.models.ops.resize import interpolation_sparse, tile_shape, upsample_tile
from cae_seg.transfer import to_device


@dataclass(frozen=True)
class WindowAxis:
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
class InferenceView:
    """One pass over an image: the image at some scale, flipped or not."""

    image: Tensor  # 3, h, w, normalised
    axes: tuple[WindowAxis, WindowAxis]
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
class CoarseLogits:
    """The logits of a view's windows side by side, and the matrices that spread them out."""

    logits: Tensor  # rows · h, cols · w, classes
    rows: sparse.csr_array  # height of the output, rows · h
    cols: sparse.csr_array
    flipped: bool = False  # columns of the output from right to left

    @classmethod
    def join(
        cls,
        view: InferenceView,
        logits: Sequence[Tensor],
        size: tuple[int, int],
        align_corners: bool,
    ) -> "CoarseLogits":
        """Lay out the logits (h, w, classes) of `view.windows()` for an output of `size`."""
        h, w, classes = logits[0].shape
        grid = tuple(len(axis.starts) for axis in view.axes)
        joined = torch.stack(list(logits)).view(*grid, h, w, classes).transpose(1, 2)
        rows, cols = (
            resampling_matrix(axis, side, out, align_corners)
            for axis, side, out in zip(view.axes, (h, w), size, strict=True)
        )
        joined = joined.reshape(grid[0] * h, grid[1] * w, classes)
        return cls(joined, rows, cols, view.flipped)

    @property
    def size(self) -> tuple[int, int]:
        """Return (height, width) of the output."""
        return self.rows.shape[0], self.cols.shape[0]

    def full(self) -> Tensor:
        """Return the logits spread out, (classes, *size)."""
        (rows,), (cols,) = _bands_on_device(self, self.size)
        return _spread(self, rows, cols)[0].permute(2, 0, 1)


class Band(NamedTuple):
    """A run of rows of a matrix that is zero elsewhere than in a run of columns."""

    out: slice
    source: slice
    values: np.ndarray | Tensor  # float32


def bands_of(matrix: sparse.csr_array, tile: int, flipped: bool = False) -> list[Band]:
    """Cut a matrix into bands of `tile` rows; `flipped` takes its rows from the last."""
    count = matrix.shape[0]
    found = []
    for start in range(0, count, tile):
        stop = min(start + tile, count)
        first, last = (count - stop, count - start) if flipped else (start, stop)
        here = slice(matrix.indptr[first], matrix.indptr[last])
        source = slice(int(matrix.indices[here].min()), int(matrix.indices[here].max()) + 1)
        values = np.zeros((stop - start, source.stop - source.start), np.float32)
        lengths = np.diff(matrix.indptr[first : last + 1])
        rows = np.repeat(np.arange(stop - start), lengths)
        values[rows, matrix.indices[here] - source.start] = matrix.data[here]
        found.append(Band(slice(start, stop), source, values[::-1] if flipped else values))
    return found


@cached(32 * 2**20, lambda m: m.data.nbytes + m.indices.nbytes + m.indptr.nbytes)
def resampling_matrix(
    axis: WindowAxis, coarse: int, size: int, align_corners: bool
) -> sparse.csr_array:
    """Return the matrix from the windows' logits along an axis to the output.

    Args:
        axis: the windows.
        coarse: logits per window.
        size: length of the output.
        align_corners: of both resizings.

    Returns:
        (size, windows · coarse): upsample to the window, average where windows overlap, resize.
    """
    upsample = interpolation_sparse(coarse, axis.crop, align_corners).tocoo()
    starts = np.asarray(axis.starts)[:, None]
    rows, columns = starts + upsample.row, np.arange(len(starts))[:, None] * coarse + upsample.col
    inside = rows < axis.length
    lines = np.arange(axis.length)
    covered = ((starts <= lines) & (lines < starts + axis.crop)).sum(0)
    values = np.broadcast_to(upsample.data, rows.shape)[inside] / covered[rows[inside]]
    shape = axis.length, len(starts) * coarse
    spread = sparse.coo_array((values, (rows[inside], columns[inside])), shape=shape).tocsr()
    if size != axis.length:
        spread = interpolation_sparse(axis.length, size, align_corners) @ spread
    spread.sum_duplicates()
    spread.eliminate_zeros()
    return spread


def argmax_labels(views: Sequence[CoarseLogits]) -> Tensor:
    """Return the most probable class of each pixel, (height, width), uint8.

    One view: the arg-max of its logits. Several: that of the mean of their soft-maxes.
    """
    size = views[0].size
    labels = torch.empty(size, dtype=torch.uint8, device=views[0].logits.device)
    tile = tile_shape(views[0].logits, size)
    axes = [_bands_on_device(view, tile) for view in views]
    for row_bands in zip(*(rows for rows, _ in axes), strict=True):
        for col_bands in zip(*(cols for _, cols in axes), strict=True):
            scores = None
            for view, rows, cols in zip(views, row_bands, col_bands, strict=True):
                fine = _spread(view, rows, cols)
                if len(views) > 1:
                    fine = fine.softmax(-1)
                scores = fine if scores is None else scores.add_(fine)
            labels[row_bands[0].out, col_bands[0].out] = scores[0].argmax(-1)
    return labels


def _spread(view: CoarseLogits, rows: Band, cols: Band) -> Tensor:
    """Return a tile of the output, (1, rows, columns, classes)."""
    part = view.logits[None, rows.source, cols.source]
    return upsample_tile(part, rows.values, cols.values)


def _bands_on_device(view: CoarseLogits, tile: tuple[int, int]) -> tuple[list[Band], list[Band]]:
    """Cut both matrices of a view, and move all bands to its device by one copy."""
    axes = bands_of(view.rows, tile[0]), bands_of(view.cols, tile[1], view.flipped)
    every = [band for bands in axes for band in bands]
    flat = torch.from_numpy(np.concatenate([band.values.ravel() for band in every]))
    parts = iter(to_device(flat, view.logits.device).split([b.values.size for b in every]))
    return tuple(
        [band._replace(values=next(parts).view(band.values.shape)) for band in bands]
        for bands in axes
    )

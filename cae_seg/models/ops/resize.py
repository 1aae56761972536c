"""Bilinear resizing and average pooling as products with small fixed matrices.

Both are linear and act on each axis alone: `y = R x Cᵀ` with one matrix per axis. Written so, their
backward is deterministic on every device (those of `F.interpolate` and `F.adaptive_avg_pool2d` on
CUDA are not), and chains of such steps collapse into one matrix per axis.

The weights are those of torch, including the single-precision arithmetic of its sampling positions.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from cae_seg.models.ops.cache import ByteCache, cached
from cae_seg.models.ops.precision import product_dtype

_MATRIX_BYTES = 16 * 2**20  # of each kind of matrix


class Taps(NamedTuple):
    """1-D linear interpolation: each output is a mean of two inputs."""

    lower: np.ndarray  # (size_out,) int64
    upper: np.ndarray
    share: np.ndarray  # weight of `upper`, float32


def interpolation_taps(size_in: int, size_out: int, align_corners: bool = False) -> Taps:
    """Return the inputs and weights of 1-D linear interpolation."""
    one = np.float32(1)
    target = np.arange(size_out, dtype=np.float32)
    if align_corners:
        scale = np.float32(size_in - 1) / np.float32(size_out - 1) if size_out > 1 else one * 0
        source = scale * target
    else:
        scale = np.float32(size_in) / np.float32(size_out)
        # Rounded once, as by the fused multiply-add that torch is compiled to.
        source = scale.astype(np.float64) * (target + np.float32(0.5)) - 0.5
        source = np.maximum(source.astype(np.float32), np.float32(0))
    lower = np.minimum(source.astype(np.int64), size_in - 1)
    upper = np.minimum(lower + 1, size_in - 1)
    return Taps(lower, upper, np.clip(source - lower.astype(np.float32), 0, 1))


def interpolation_sparse(
    size_in: int, size_out: int, align_corners: bool = False
) -> sparse.csr_array:
    """Return the (size_out, size_in) matrix of 1-D linear interpolation, float64, two a row."""
    lower, upper, share = interpolation_taps(size_in, size_out, align_corners)
    values = np.stack([np.float32(1) - share, share], 1).astype(np.float64)
    places = np.stack([lower, upper], 1)
    starts = np.arange(0, 2 * size_out + 1, 2)
    return sparse.csr_array((values.ravel(), places.ravel(), starts), shape=(size_out, size_in))


@cached(_MATRIX_BYTES)
def interpolation_matrix(size_in: int, size_out: int, align_corners: bool = False) -> np.ndarray:
    """Return the (size_out, size_in) matrix of 1-D linear interpolation, float64."""
    matrix = interpolation_sparse(size_in, size_out, align_corners).toarray()
    matrix.setflags(write=False)
    return matrix


@cached(_MATRIX_BYTES)
def pooling_matrix(size_in: int, size_out: int) -> np.ndarray:
    """Return the (size_out, size_in) matrix of 1-D adaptive average pooling, float64."""
    matrix = np.zeros((size_out, size_in))
    for i in range(size_out):
        start, stop = i * size_in // size_out, -(-(i + 1) * size_in // size_out)
        matrix[i, start:stop] = 1 / (stop - start)
    matrix.setflags(write=False)
    return matrix


@cached(_MATRIX_BYTES)
def tap_matrices(size_in: int, size_out: int, align_corners: bool = False) -> np.ndarray:
    """Return linear interpolation followed by the three shifts of a zero-padded 3-tap filter.

    Shape (3, size_out, size_in): `Σ_t w[t] · (matrices[t] @ x)` is the convolution of the
    interpolated `x` with `w`, padding 1.
    """
    plain = interpolation_matrix(size_in, size_out, align_corners)
    taps = np.zeros((3, size_out, size_in))
    taps[0, 1:] = plain[:-1]
    taps[1] = plain
    taps[2, :-1] = plain[1:]
    taps.setflags(write=False)
    return taps


def tap_columns(size_in: int, size_out: int, align_corners: bool = False) -> np.ndarray:
    """Return (size_out, size_in · 3): the column taps of each input column next to each other."""
    taps = tap_matrices(size_in, size_out, align_corners)
    return taps.transpose(1, 2, 0).reshape(size_out, size_in * 3)


def tap_rows(sizes_in: tuple[int, ...], size_out: int, align_corners: bool = False) -> np.ndarray:
    """Return (size_out, Σ 3 · size_in): for each map a block of input rows for each row tap."""
    blocks = [tap_matrices(size, size_out, align_corners) for size in sizes_in]
    return np.concatenate([taps.transpose(1, 0, 2).reshape(size_out, -1) for taps in blocks], 1)


def pooling_grid(height: int, width: int, sizes: tuple[int, ...]) -> np.ndarray:
    """Return (Σ size², height · width): average pooling to several square sizes at once."""
    return np.concatenate(
        [np.kron(pooling_matrix(height, size), pooling_matrix(width, size)) for size in sizes]
    )


MATRICES: dict[str, Callable[..., np.ndarray]] = {
    "interpolation": interpolation_matrix,
    "pooling": pooling_grid,
    "tap columns": tap_columns,
    "tap rows": tap_rows,
}


_made: ByteCache[Tensor] = ByteCache(64 * 2**20, lambda tensor: tensor.nbytes)


def constant(kind: str, *args: Any, like: Tensor) -> Tensor:
    """Return the matrix `MATRICES[kind](*args)` in the dtype and on the device of `like`."""

    def make() -> Tensor:
        # Inside inference mode a tensor would be unfit for training ever after.
        with torch.inference_mode(False):
            return torch.tensor(MATRICES[kind](*args)).to(like.device, like.dtype)

    return _made.get((kind, args, like.dtype, like.device), make)


def apply_matrices(x: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
    """Return `rows @ x @ colsᵀ` per image and channel.

    Args:
        x: (N, C, h, w); channels last in memory stays so.
        rows: (H, h).
        cols: (W, w).

    Returns:
        (N, C, H, W).
    """
    n, c, h, w = x.shape
    if x.is_contiguous() or not x.is_contiguous(memory_format=torch.channels_last):
        return torch.matmul(rows, torch.matmul(x, cols.t()))
    tall = torch.matmul(rows, x.permute(0, 2, 3, 1).reshape(n, h, w * c))  # n, H, w·c
    wide = torch.matmul(cols, tall.view(n, len(rows), w, c))  # n, H, W, c
    return wide.permute(0, 3, 1, 2)


def resize_bilinear(x: Tensor, size: tuple[int, int], align_corners: bool = False) -> Tensor:
    """Return `x` (N, C, h, w) resized to (N, C, *size), as `F.interpolate(mode="bilinear")`."""
    size = tuple(int(side) for side in size)
    if size == tuple(x.shape[2:]):
        return x
    rows, cols = (
        constant("interpolation", side_in, side_out, align_corners, like=x)
        for side_in, side_out in zip(x.shape[2:], size, strict=True)
    )
    return apply_matrices(x, rows, cols)


def pyramid_pool(x: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    """Return `x` (N, C, h, w) averaged to (N, C, s, s) for each s, as `F.adaptive_avg_pool2d`."""
    n, c, h, w = x.shape
    x = x.to(product_dtype(x))
    matrix = constant("pooling", h, w, tuple(sizes), like=x)
    pooled = torch.matmul(matrix, x.permute(0, 2, 3, 1).reshape(n, h * w, c))  # N, Σ s², C
    parts = pooled.split([size * size for size in sizes], dim=1)
    return [
        part.unflatten(1, (size, size)).permute(0, 3, 1, 2)
        for part, size in zip(parts, sizes, strict=True)
    ]


def bands(matrix: np.ndarray, tile: int) -> Iterator[tuple[slice, slice]]:
    """Cut a banded matrix into runs of `tile` rows; yield (rows, the columns they touch)."""
    for start in range(0, len(matrix), tile):
        rows = slice(start, min(start + tile, len(matrix)))
        touched = np.flatnonzero(np.any(matrix[rows] != 0, axis=0))
        yield rows, slice(int(touched[0]), int(touched[-1]) + 1)


# Bytes of logits at a time on CUDA: all of two crops, few and large launches.
_TILE_BYTES = 3 * 2**27


def tile_shape(like: Tensor, size: tuple[int, int]) -> tuple[int, int]:
    """Return the output pixels (down, across) to treat at once where all classes are at hand.

    Args:
        like: maps (…, classes), whose leading axes but two count as images.
        size: (height, width) of the output.
    """
    if like.device.type == "cpu":  # 150 classes of them stay in the caches
        return 32, 64
    images, classes = math.prod(like.shape[:-3]), like.shape[-1]
    rows = _TILE_BYTES // (4 * images * size[1] * classes)
    return max(rows, 1), size[1]


def upsample_tile(tile: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
    """Return `rows · tile · colsᵀ` for each channel: (N, h, w, C) → (N, H, W, C)."""
    n, h, w, c = tile.shape
    tall = torch.matmul(rows, tile.reshape(n, h, w * c))  # N, H, w·C
    return torch.matmul(cols, tall.view(n, len(rows), w, c))

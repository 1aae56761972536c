"""3×3 convolutions in the Winograd domain, F(4×4, 3×3) (Lavin & Gray, arXiv:1509.09308).

Exact up to rounding, with 36 multiplications where the plain form has 144. Stride 1, zero padding
1, no bias; everything inside is channels last, so that each step is a large matrix product.
"""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from cae_seg.models.ops.cpu.memory import scratch
from cae_seg.models.ops.resize import MATRICES, constant

TILE, PATCH = 4, 6
# Output pixels per block: the three buffers of a block then stay near the caches.
_BLOCK_TILES = 512
_MIN_CHANNELS, _MIN_PIXELS = 128, 32 * 32


@lru_cache
def winograd_matrix(kind: str) -> np.ndarray:
    """Return a transform of row-major tiles: "data" (36, 36), "weight" (36, 9), "output" (16, 36).

    Toom-Cook at 0, ±3/4, ±3/2 and infinity: half the rounding error of the usual 0, ±1, ±2. As the
    transforms are matrix products, round numbers would save nothing.
    """
    points = np.array([0, 0.75, -0.75, 1.5, -1.5])

    def evaluation(terms: int) -> np.ndarray:
        at_infinity = np.eye(1, terms, terms - 1)
        return np.concatenate([points[:, None] ** np.arange(terms), at_infinity])

    data = np.linalg.inv(evaluation(PATCH)).T
    # Powers of two, exact to scale by, keep input and weight in the same range.
    balance = 2.0 ** np.round(np.log2(np.abs(data).max(axis=1, keepdims=True)))
    axis = {"data": data / balance, "weight": evaluation(3) * balance, "output": evaluation(TILE).T}
    return np.kron(axis[kind], axis[kind])


MATRICES["winograd"] = winograd_matrix


def winograd_fits(x: Tensor, weight: Tensor, always: bool) -> bool:
    """Tell whether the Winograd form applies, and unless `always` whether it pays."""
    if x.device.type != "cpu" or x.dtype != torch.float32 or weight.dtype != torch.float32:
        return False
    if torch.is_autocast_enabled("cpu") or x.shape[2] % TILE or x.shape[3] % TILE:
        return False
    pays = min(weight.shape[:2]) >= _MIN_CHANNELS and x.shape[2] * x.shape[3] >= _MIN_PIXELS
    return always or pays


class Winograd(torch.autograd.Function):
    """3×3 convolution of (N, H, W, C) with (K, C, 3, 3) in the Winograd domain: (N, H, W, K)."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor) -> Tensor:
        """Convolve."""
        ctx.save_for_backward(x, weight)
        return _winograd(x, weight)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Convolve the gradient with the turned weight, and with the input."""
        x, weight = ctx.saved_tensors
        gradient = gradient.contiguous()
        for_x = for_weight = None
        if ctx.needs_input_grad[0]:
            for_x = _winograd(gradient, weight.flip(2, 3).transpose(0, 1))
        if ctx.needs_input_grad[1]:
            for_weight = _winograd_weight_gradient(x, gradient)
        return for_x, for_weight


def _winograd(x: Tensor, weight: Tensor) -> Tensor:
    n, height, width, _ = x.shape
    k = weight.shape[0]
    kernel = _transformed_weight(weight)
    out = x.new_empty(n, height, width, k)
    to_output = constant("winograd", "output", like=x)
    for image, rows in _blocks(n, height, width):
        data = _transformed_data(x[image], rows)
        tiles = data.shape[1]
        product = scratch.take("product", PATCH * PATCH, tiles, k)
        torch.bmm(data, kernel, out=product)
        pixels = scratch.take("pixels", TILE * TILE, tiles * k)
        torch.mm(to_output, product.view(PATCH * PATCH, -1), out=pixels)
        _untile(out[image], rows).copy_(pixels.view(TILE, TILE, -1, width // TILE, k))
    return out


def _winograd_weight_gradient(x: Tensor, gradient: Tensor) -> Tensor:
    n, height, width, c = x.shape
    k = gradient.shape[3]
    total = scratch.take("kernel", PATCH * PATCH, c, k).zero_()
    to_product = constant("winograd", "output", like=x).t()
    for image, rows in _blocks(n, height, width):
        data = _transformed_data(x[image], rows)
        tiles = data.shape[1]
        pixels = scratch.take("pixels", TILE * TILE, tiles * k)
        pixels.view(TILE, TILE, -1, width // TILE, k).copy_(_untile(gradient[image], rows))
        product = scratch.take("product", PATCH * PATCH, tiles, k)
        torch.mm(to_product, pixels, out=product.view(PATCH * PATCH, -1))
        total.baddbmm_(data.transpose(1, 2), product)
    by_tap = torch.mm(constant("winograd", "weight", like=x).t(), total.view(PATCH * PATCH, -1))
    return by_tap.view(3, 3, c, k).permute(3, 2, 0, 1)


def _transformed_weight(weight: Tensor) -> Tensor:
    """Return the weight (K, C, 3, 3) in the Winograd domain, (36, C, K)."""
    k, c = weight.shape[:2]
    taps = scratch.take("taps", 3, 3, c, k)
    taps.copy_(weight.permute(2, 3, 1, 0))
    kernel = scratch.take("kernel", PATCH * PATCH, c, k)
    torch.mm(
        constant("winograd", "weight", like=weight),
        taps.view(9, -1),
        out=kernel.view(PATCH**2, -1),
    )
    return kernel


def _blocks(images: int, height: int, width: int) -> list[tuple[int, slice]]:
    """Cut images into runs of tile rows: (image, tile rows)."""
    step = max(1, _BLOCK_TILES // (width // TILE))
    rows = height // TILE
    cuts = [slice(start, min(start + step, rows)) for start in range(0, rows, step)]
    return [(image, cut) for image in range(images) for cut in cuts]


def _untile(image: Tensor, rows: slice) -> Tensor:
    """View tile rows of an image (H, W, C) as (row in tile, column in tile, rows, columns, C)."""
    _, width, c = image.shape
    strip = image[rows.start * TILE : rows.stop * TILE]
    return strip.view(-1, TILE, width // TILE, TILE, c).permute(1, 3, 0, 2, 4)


def _transformed_data(image: Tensor, rows: slice) -> Tensor:
    """Return tile rows of an image (H, W, C) in the Winograd domain, (36, tiles, C)."""
    height, width, c = image.shape
    first, last = rows.start * TILE - 1, rows.stop * TILE + 1
    padded = scratch.take("padded", last - first, width + 2, c)
    padded[:, 0] = padded[:, -1] = 0
    if first < 0:
        padded[0] = 0
    if last > height:
        padded[-1] = 0
    inside = slice(max(first, 0), min(last, height))
    padded[inside.start - first : inside.stop - first, 1:-1] = image[inside]
    patches = padded.unfold(0, PATCH, TILE).unfold(1, PATCH, TILE).permute(3, 4, 0, 1, 2)
    tiles = patches.shape[2] * patches.shape[3]
    gathered = scratch.take("gathered", *patches.shape)
    gathered.copy_(patches)
    data = scratch.take("data", PATCH * PATCH, tiles, c)
    torch.mm(
        constant("winograd", "data", like=image),
        gathered.view(PATCH * PATCH, -1),
        out=data.view(PATCH * PATCH, -1),
    )
    return data

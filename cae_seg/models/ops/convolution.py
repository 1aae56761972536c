"""Convolutions with fewer multiplications or fewer passes over memory.

For 3×3 ones (stride 1, zero padding 1, no bias) two exact rearrangements, both with a deterministic
backward and both leaving the weights as they are:

* over a bilinearly upsampled map: mixing of channels commutes with upsampling, so the nine taps mix
  channels at the map's own resolution, and upsampling with the taps' shifts is one fixed matrix per
  axis;
* in the Winograd domain, F(4×4, 3×3) (Lavin & Gray, arXiv:1509.09308): 36 multiplications where
  the plain form has 144.

1×1 convolutions and 2×2 transposed ones are single matrix products. Everything inside is channels
last, so that each step is a large one.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cae_seg.models.accelerate import Switches
from cae_seg.models.ops.cpu.memory import scratch
from cae_seg.models.ops.resize import MATRICES, constant, resize_bilinear

TILE, PATCH = 4, 6
# Output pixels per block: the three buffers of a block then stay near the caches.
_BLOCK_TILES = 512
_MIN_CHANNELS, _MIN_PIXELS = 128, 32 * 32


class Deconvolution(nn.ConvTranspose2d):
    """Transposed convolution with a 2×2 kernel and stride 2: (N, C, H, W) → (N, K, 2H, 2W)."""

    fast_path, fast = "matrix_deconvolution", True

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size=2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Return each pixel spread over 2×2."""
        if not self.fast:
            return super().forward(x)
        n, c, h, w = x.shape
        weight = self.weight.permute(2, 3, 1, 0).reshape(-1, c)  # 2 · 2 · K, C
        spread = F.linear(x.permute(0, 2, 3, 1), weight, self.bias.repeat(4))
        spread = spread.view(n, h, w, 2, 2, self.out_channels).transpose(2, 3)
        return spread.reshape(n, 2 * h, 2 * w, self.out_channels).permute(0, 3, 1, 2)


def conv1x1(x: Tensor, weight: Tensor) -> Tensor:
    """Return the convolution of `x` (N, C, H, W) with `weight` (K, C, 1, 1): (N, K, H, W)."""
    return F.linear(x.permute(0, 2, 3, 1), weight.flatten(1)).permute(0, 3, 1, 2)


def conv3x3(x: Tensor, weight: Tensor, switches: Switches) -> Tensor:
    """Return the convolution of `x` (N, C, H, W) with `weight` (K, C, 3, 3): (N, K, H, W)."""
    if switches["winograd"] and _winograd_fits(x, weight, switches["winograd"] == "always"):
        nhwc = x.permute(0, 2, 3, 1).contiguous()
        return _Winograd.apply(nhwc, weight).permute(0, 3, 1, 2)
    return F.conv2d(x, weight, padding=1)


def conv3x3_of_concatenated(
    maps: Sequence[Tensor], weight: Tensor, switches: Switches, align_corners: bool = False
) -> Tensor:
    """Convolve maps that are resized to the first one's size and concatenated, in that order.

    Args:
        maps: (N, C_i, h_i, w_i) each.
        weight: (K, ΣC_i, 3, 3).
        switches: the fast paths; without `fused_bottleneck` the maps are resized and concatenated.
        align_corners: of the resizing.

    Returns:
        (N, K, h_0, w_0).
    """
    size = tuple(maps[0].shape[2:])
    if not switches["fused_bottleneck"]:
        resized = [resize_bilinear(x, size, align_corners) for x in maps]
        return conv3x3(torch.cat(resized, dim=1), weight, switches)
    parts = weight.split([x.shape[1] for x in maps], dim=1)
    large, small = [], []
    for x, part in zip(maps, parts, strict=True):
        fewer = x.shape[2] * x.shape[3] < size[0] * size[1]
        (small if fewer else large).append((x, part))
    images = torch.cat([resize_bilinear(x, size, align_corners) for x, _ in large], dim=1)
    out = conv3x3(images, torch.cat([part for _, part in large], dim=1), switches)
    return out + _conv3x3_of_upsampled(small, size, align_corners) if small else out


def _conv3x3_of_upsampled(
    pairs: Sequence[tuple[Tensor, Tensor]], size: tuple[int, int], align_corners: bool
) -> Tensor:
    """Return Σ conv3x3(upsampled map, weight) over (map, weight) pairs: (N, K, *size)."""
    rows, columns = [], []
    for x, weight in pairs:
        n, c, h, w = x.shape
        k = weight.shape[0]
        nhwc = x.permute(0, 2, 3, 1).reshape(n, h * w, c)
        across = _tap_columns(w, size[1], align_corners, like=nhwc)
        by_row = weight.permute(2, 1, 3, 0).reshape(3, c, 3 * k)
        for tap in range(3):
            mixed = torch.matmul(nhwc, by_row[tap])  # n, h·w, 3·k
            wide = torch.matmul(across.to(mixed.dtype), mixed.view(n, h, w * 3, k))  # n, h, W, k
            columns.append(wide.view(n, h, size[1] * k))
        rows.append(_tap_rows(h, size[0], align_corners, like=columns[-1]))
    out = torch.matmul(torch.cat(rows, dim=1), torch.cat(columns, dim=1))  # n, H, W·k
    return out.view(len(out), *size, -1).permute(0, 3, 1, 2)


def _tap_columns(size_in: int, size_out: int, align_corners: bool, like: Tensor) -> Tensor:
    """Return (size_out, size_in · 3): column taps side by side for each input column."""
    taps = constant("taps", size_in, size_out, align_corners, like=like)
    return taps.permute(1, 2, 0).reshape(size_out, size_in * 3)


def _tap_rows(size_in: int, size_out: int, align_corners: bool, like: Tensor) -> Tensor:
    """Return (size_out, 3 · size_in): one block of input rows for each row tap."""
    taps = constant("taps", size_in, size_out, align_corners, like=like)
    return taps.permute(1, 0, 2).reshape(size_out, 3 * size_in)


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


def _winograd_fits(x: Tensor, weight: Tensor, always: bool) -> bool:
    """Tell whether the Winograd form applies, and unless `always` whether it pays."""
    if x.device.type != "cpu" or x.dtype != torch.float32 or weight.dtype != torch.float32:
        return False
    if torch.is_autocast_enabled("cpu") or x.shape[2] % TILE or x.shape[3] % TILE:
        return False
    pays = min(weight.shape[:2]) >= _MIN_CHANNELS and x.shape[2] * x.shape[3] >= _MIN_PIXELS
    return always or pays


class _Winograd(torch.autograd.Function):
    """3×3 convolution of (N, H, W, C) with (K, C, 3, 3) in the Winograd domain: (N, H, W, K)."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _winograd(x, weight)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
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

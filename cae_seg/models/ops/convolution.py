"""Convolutions with fewer multiplications or fewer passes over memory.

Exact rearrangements with a deterministic backward, which leave the weights as they are. 1×1
convolutions and 2×2 transposed ones are single matrix products, and one after the other is a single
one for both; 3×3 ones over upsampled maps mix channels at the maps' own resolution.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cae_seg.models.accelerate import Switches
from cae_seg.models.ops.cpu.winograd import Winograd, winograd_fits
from cae_seg.models.ops.precision import product_dtype
from cae_seg.models.ops.resize import resize_bilinear
from cae_seg.models.ops.upsampled_convolution import conv3x3_of_upsampled


class Deconvolution(nn.ConvTranspose2d):
    """Transposed convolution with a 2×2 kernel and stride 2: (N, C, H, W) → (N, K, 2H, 2W)."""

    fast_path, fast = "matrix_deconvolution", True

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size=2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Return each pixel spread over 2×2."""
        if not self.fast:
            return super().forward(x)
        return _Spread.apply(x, self.weight, self.bias, None, None, product_dtype(x))


class Unexpanded(NamedTuple):
    """A map (N, C, 2H, 2W) before the deconvolution that makes it: of `x` (N, D, H, W)."""

    x: Tensor
    deconvolution: Deconvolution

    def conv1x1(self, weight: Tensor, copy: Tensor, *, always: bool) -> Tensor:
        """Return the 1×1 convolution of the map: (N, K, 2H, 2W).

        Both convolutions are linear: where an image has enough pixels, they are merged to one.

        Args:
            weight: (K, C, 1, 1); gets the gradient.
            copy: of `weight`, in the precision of products.
            always: whether to merge however few pixels there are.
        """
        layer, x = self.deconvolution, self.x
        if not always and x.shape[2] * x.shape[3] < x.shape[1]:
            return conv1x1(layer(x), copy)
        matrix = copy.detach().flatten(1)
        return _Spread.apply(x, layer.weight, layer.bias, weight, matrix, product_dtype(x))


class _Spread(torch.autograd.Function):
    """2×2 transposed convolution of stride 2 as one matrix product; channels last inside.

    With a 1×1 convolution after it, the product is by the product of both matrices.
    """

    @staticmethod
    def forward(
        ctx,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        mixing: Tensor | None,
        copy: Tensor | None,
        dtype: torch.dtype,
    ) -> Tensor:
        """Return (N, K, 2H, 2W).

        Args:
            ctx: of autograd.
            x: (N, D, H, W).
            weight: (D, C, 2, 2).
            bias: (C,).
            mixing: of the 1×1 convolution, (K, C, 1, 1); K = C without one.
            copy: of `mixing`, (K, C) in `dtype`.
            dtype: of the products.
        """
        n, d, h, w = x.shape
        rows = x.new_empty(n, h, w, d, dtype=dtype).copy_(x.permute(0, 2, 3, 1)).view(-1, d)
        spread = x.new_empty(2, 2, len(bias), d, dtype=dtype).copy_(weight.permute(2, 3, 1, 0))
        spread = spread.flatten(0, 1)  # 4, C, D
        matrix, shift = spread, bias
        with torch.autocast(x.device.type, enabled=False):
            if mixing is not None:
                matrix = torch.bmm(copy.expand(4, -1, -1), spread)
                shift = torch.mv(mixing.flatten(1), bias)
            k = len(shift)
            parts = torch.mm(rows, matrix.view(4 * k, d).t())
        ctx.save_for_backward(rows, matrix, bias, mixing, copy, spread)
        ctx.shape, ctx.dtype = (n, h, w), weight.dtype
        # The bias comes with the pass that puts the four pixels into their places.
        out = parts.new_empty(n, h, 2, w, 2, k)
        torch.add(parts.view(n, h, w, 2, 2, k).transpose(2, 3), shift, out=out)
        return out.view(n, 2 * h, 2 * w, k).permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gather the gradient back; return those of x, weight, bias and mixing."""
        rows, matrix, bias, mixing, copy, spread = ctx.saved_tensors
        n, h, w = ctx.shape
        d, k = rows.shape[1], grad.shape[1]
        gathered = grad.permute(0, 2, 3, 1).reshape(n, h, 2, w, 2, k).transpose(2, 3)
        gathered = gathered.reshape(-1, 4 * k)  # one row for each input pixel
        for_x = for_weight = for_bias = for_mixing = None
        asks_x, asks_weight, asks_bias, asks_mixing = ctx.needs_input_grad[:4]
        if asks_x:
            for_x = (gathered @ matrix.view(4 * k, d)).view(n, h, w, d).permute(0, 3, 1, 2)
        if asks_weight or asks_mixing:
            for_matrix = (gathered.t() @ rows).view(4, k, d)
        if asks_bias or asks_mixing:
            for_shift = gathered.view(-1, k).sum(0, dtype=ctx.dtype)
        if asks_mixing:
            mixed = torch.bmm(for_matrix, spread.transpose(1, 2)).sum(0, dtype=ctx.dtype)
            for_mixing = torch.addr(mixed, for_shift, bias).view_as(mixing)
        if asks_weight:
            if mixing is not None:
                for_matrix = torch.bmm(copy.t().expand(4, -1, -1), for_matrix)
            product = for_matrix.view(2, 2, -1, d).permute(3, 2, 0, 1)
            for_weight = product.new_empty(product.shape, dtype=ctx.dtype).copy_(product)
        if asks_bias:
            for_bias = for_shift if mixing is None else torch.mv(mixing.flatten(1).t(), for_shift)
        return for_x, for_weight, for_bias, for_mixing, None, None


def conv1x1(x: Tensor, weight: Tensor) -> Tensor:
    """Return the convolution of `x` (N, C, H, W) with `weight` (K, C, 1, 1): (N, K, H, W)."""
    return F.linear(x.permute(0, 2, 3, 1), weight.flatten(1)).permute(0, 3, 1, 2)


def conv3x3(x: Tensor, weight: Tensor, switches: Switches) -> Tensor:
    """Return the convolution of `x` (N, C, H, W) with `weight` (K, C, 3, 3): (N, K, H, W)."""
    if switches["winograd"] and winograd_fits(x, weight, switches["winograd"] == "always"):
        nhwc = x.permute(0, 2, 3, 1).contiguous()
        return Winograd.apply(nhwc, weight).permute(0, 3, 1, 2)
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
    channels = [x.shape[1] for x in maps]
    parts = list(zip(maps, weight.split(channels, dim=1), strict=True))
    fewer = [x.shape[2] * x.shape[3] < size[0] * size[1] for x in maps]
    if fewer == sorted(fewer):  # the small ones come last, as in UPerNet
        first = sum(channels[: fewer.index(True)]) if any(fewer) else sum(channels)
        weights = weight.split([first, sum(channels) - first], dim=1)
    else:
        weights = [
            _concatenate(
                [part for (_, part), small in zip(parts, fewer, strict=True) if small is s]
            )
            for s in (False, True)
        ]
    large = [
        resize_bilinear(x, size, align_corners) for x, f in zip(maps, fewer, strict=True) if not f
    ]
    out = conv3x3(_concatenate(large), weights[0], switches)
    small = [x for x, f in zip(maps, fewer, strict=True) if f]
    return out + conv3x3_of_upsampled(small, weights[1], size, align_corners) if small else out


def _concatenate(tensors: list[Tensor]) -> Tensor:
    """Join along the channels; one alone is not copied."""
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors, dim=1)

"""3×3 convolution over bilinearly upsampled maps, at the maps' own resolution.

Mixing of channels commutes with upsampling: the nine taps mix channels of the small map, and
upsampling together with the taps' shifts is one fixed matrix per axis. All maps that are added up
share the product along the rows. As the operation is linear, its backward needs only its inputs.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from cae_seg.models.ops.precision import product_dtype
from cae_seg.models.ops.resize import constant


def conv3x3_of_upsampled(
    maps: Sequence[Tensor], weight: Tensor, size: tuple[int, int], align_corners: bool
) -> Tensor:
    """Return the convolution of upsampled and concatenated maps, zero padding 1: (N, K, *size).

    Args:
        maps: (N, C_i, h_i, w_i) each.
        weight: (K, Σ C_i, 3, 3).
        size: (height, width) that the maps are upsampled to.
        align_corners: of the upsampling.
    """
    dtype = product_dtype(maps[0])
    return _UpsampledConvolution.apply(weight, size, align_corners, dtype, *maps)


class _Shape(NamedTuple):
    """Sizes of one map, with its place among the rows of all maps."""

    channels: int
    height: int
    width: int
    channel: int  # its first one among those of all maps
    first: int  # row in the stack of all maps' rows, three for each row of a map


class _UpsampledConvolution(torch.autograd.Function):
    """Rows come before images in every tensor, so that all maps' rows are one matrix."""

    @staticmethod
    def forward(
        ctx,
        weight: Tensor,
        size: tuple[int, int],
        align_corners: bool,
        dtype: torch.dtype,
        *maps: Tensor,
    ) -> Tensor:
        ctx.size, ctx.align_corners, ctx.dtype = size, align_corners, weight.dtype
        ctx.shapes, images, k = _shapes(maps), len(maps[0]), len(weight)
        rows = sum(3 * shape.height for shape in ctx.shapes)
        stack = weight.new_empty(rows, images, size[1], k, dtype=dtype)
        # Row tap; channel; column tap and output.
        kernel = stack.new_empty(3, weight.shape[1], 3, k).copy_(weight.permute(2, 1, 3, 0))
        kernel = kernel.view(3, -1, 3 * k)
        inputs = []
        with torch.autocast(stack.device.type, enabled=False):
            for x, (c, h, w, channel, first) in zip(maps, ctx.shapes, strict=True):
                x = stack.new_empty(h, images, w, c).copy_(x.permute(2, 0, 3, 1)).view(-1, c)
                part = kernel[:, channel : channel + c]
                mixed = torch.bmm(x.expand(3, -1, -1), part)  # 3; h, N, w; 3, k
                across = _columns(w, size[1], align_corners, 3 * h * images, stack)
                wide = stack[first : first + 3 * h].view(-1, size[1], k)
                torch.bmm(across, mixed.view(-1, 3 * w, k), out=wide)
                inputs.append(x)
            out = torch.mm(_rows(ctx.shapes, size[0], align_corners, stack), stack.view(rows, -1))
        ctx.save_for_backward(kernel, *inputs)
        return out.view(size[0], images, size[1], k).permute(1, 3, 0, 2)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        kernel, *inputs = ctx.saved_tensors
        images, k, height, width = grad.shape
        rows = kernel.new_empty(height, images, width, k).copy_(grad.permute(2, 0, 3, 1))
        to_stack = _rows(ctx.shapes, height, ctx.align_corners, kernel).t()
        stack = torch.mm(to_stack, rows.view(height, -1)).view(-1, images, width, k)
        for_maps, for_kernel = [], []
        for x, (c, h, w, channel, first) in zip(inputs, ctx.shapes, strict=True):
            wide = stack[first : first + 3 * h].view(-1, width, k)
            across = _columns(w, width, ctx.align_corners, len(wide), kernel)
            mixed = torch.bmm(across.transpose(1, 2), wide).view(3, -1, 3 * k)
            part = kernel[:, channel : channel + c]
            by_tap = torch.bmm(mixed, part.transpose(1, 2))  # 3; h, N, w; c
            for_maps.append(by_tap.sum(0).view(h, images, w, c).permute(1, 3, 0, 2))
            for_kernel.append(torch.bmm(x.t().expand(3, -1, -1), mixed))
        joined = for_kernel[0] if len(for_kernel) == 1 else torch.cat(for_kernel, dim=1)
        for_weight = joined.view(3, -1, 3, k).permute(3, 1, 0, 2).to(ctx.dtype)
        return for_weight, None, None, None, *for_maps


def _shapes(maps: Sequence[Tensor]) -> list[_Shape]:
    shapes, channel, first = [], 0, 0
    for x in maps:
        shapes.append(_Shape(*x.shape[1:], channel, first))
        channel, first = channel + x.shape[1], first + 3 * x.shape[2]
    return shapes


def _columns(width: int, out: int, align_corners: bool, count: int, like: Tensor) -> Tensor:
    """Return (count, out, 3 · width): the column taps of each column of a map, for each row."""
    return constant("tap columns", width, out, align_corners, like=like).expand(count, -1, -1)


def _rows(shapes: Sequence[_Shape], height: int, align_corners: bool, like: Tensor) -> Tensor:
    """Return (height, Σ 3 · height of a map): the row taps of all maps, row tap before row."""
    heights = tuple(shape.height for shape in shapes)
    return constant("tap rows", heights, height, align_corners, like=like)

"""Cross entropy of upsampled logits, tile by tile.

The published loss upsamples 150 planes of logits to the size of the labels, and soft-max, loss,
accuracy and their gradients each make planes of that size again. Here one tile at a time is
upsampled, turned into its part of the loss, and its gradient folded back to the logits' own
resolution; nothing of full size with a class axis ever exists. Sums run in a fixed order.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cae_seg.models.ops.resize import (
    bands,
    constant,
    interpolation_matrix,
    resize_bilinear,
    tile_shape,
    upsample_tile,
)


class PixelLoss(NamedTuple):
    """Loss and accuracy of a batch."""

    loss: Tensor  # mean over all pixels, ignored ones counted in the denominator
    accuracy: Tensor  # percent of the pixels that are not ignored, shape (1,)


def upsampled_cross_entropy(
    logits: Tensor, labels: Tensor, *, ignore_index: int, align_corners: bool, tiled: bool
) -> PixelLoss:
    """Return the cross entropy of `logits`, resized to the size of `labels`.

    Args:
        logits: (N, classes, h, w).
        labels: (N, H, W), integers in 0 … classes − 1, or `ignore_index`.
        ignore_index: label that adds nothing to the loss but counts in its mean, as published.
        align_corners: of the resizing.
        tiled: work tile by tile; else the plain form with full-size logits.
    """
    labels = labels.long()
    if tiled:
        total, hits = _TiledCrossEntropy.apply(logits, labels, ignore_index, align_corners)
    else:
        full = resize_bilinear(logits.float(), labels.shape[1:], align_corners)
        # Flattened: the two-dimensional loss has no deterministic backward on CUDA.
        flat, target = full.permute(0, 2, 3, 1).flatten(0, 2), labels.flatten()
        total = F.cross_entropy(flat, target, reduction="none", ignore_index=ignore_index).sum()
        hits = (flat.argmax(1) == target).sum()
    counted = (labels != ignore_index).sum().clamp_min(1)
    return PixelLoss(total / labels.numel(), (hits * 100.0 / counted).float().view(1))


class _TiledCrossEntropy(torch.autograd.Function):
    """Sum of the cross entropy over pixels, and the number of pixels predicted right."""

    @staticmethod
    def forward(
        ctx, logits: Tensor, labels: Tensor, ignore_index: int, align_corners: bool
    ) -> tuple[Tensor, Tensor]:
        with torch.autocast(logits.device.type, enabled=False):
            coarse = logits.detach().permute(0, 2, 3, 1).float().contiguous()  # N, h, w, classes
            gradient = torch.zeros_like(coarse) if ctx.needs_input_grad[0] else None
            total, hits = _sum_tiles(coarse, labels, gradient, ignore_index, align_corners)
        ctx.save_for_backward(gradient)
        ctx.dtype = logits.dtype
        ctx.mark_non_differentiable(hits)
        return total, hits

    @staticmethod
    def backward(ctx, by_total: Tensor, by_hits: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        # Scaled in float32 before the cast: half-precision gradients of a mean would vanish.
        return (gradient * by_total).permute(0, 3, 1, 2).to(ctx.dtype), None, None, None


def _sum_tiles(
    coarse: Tensor, labels: Tensor, gradient: Tensor | None, ignore_index: int, align_corners: bool
) -> tuple[Tensor, Tensor]:
    total = coarse.new_zeros((), dtype=torch.float64)
    hits = labels.new_zeros(())
    sizes = list(zip(coarse.shape[1:3], labels.shape[1:], strict=True))
    tiles = tile_shape(coarse)
    matrices = [interpolation_matrix(*size, align_corners) for size in sizes]
    rows, cols = (constant("interpolation", *size, align_corners, like=coarse) for size in sizes)
    for out_rows, in_rows in bands(matrices[0], tiles[0]):
        for out_cols, in_cols in bands(matrices[1], tiles[1]):
            down, across = rows[out_rows, in_rows], cols[out_cols, in_cols]
            fine = upsample_tile(coarse[:, in_rows, in_cols], down, across)
            target = labels[:, out_rows, out_cols]
            tile_total, tile_hits = _tile_loss(fine, target, ignore_index, gradient is not None)
            total += tile_total
            hits += tile_hits
            if gradient is not None:
                gradient[:, in_rows, in_cols] += upsample_tile(fine, down.t(), across.t())
    return total.float(), hits


def _tile_loss(
    logits: Tensor, target: Tensor, ignore_index: int, want_gradient: bool
) -> tuple[Tensor, Tensor]:
    """Return loss and hits of a tile (N, H, W, classes); turn `logits` into their gradient."""
    valid = target != ignore_index
    index = torch.where(valid, target, 0).unsqueeze(-1)
    best, predicted = logits.max(-1, keepdim=True)
    hits = (predicted.squeeze(-1) == target).sum()
    logits -= best
    picked = logits.gather(-1, index)
    partition = logits.exp_().sum(-1, keepdim=True)
    loss = ((partition.log() - picked).squeeze(-1) * valid).sum(dtype=torch.float64)
    if want_gradient:
        weight = valid.unsqueeze(-1).to(logits.dtype)
        logits *= weight / partition
        logits.scatter_(-1, index, logits.gather(-1, index) - weight)
    return loss, hits

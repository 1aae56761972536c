"""Cross entropy of upsampled logits, tile by tile.

The published loss upsamples 150 planes of logits to the size of the labels, and soft-max, loss,
accuracy and their gradients each make planes of that size again. Here one tile at a time is
upsampled, turned into its part of the loss, and its gradient folded back to the logits' own
resolution; nothing of full size with a class axis ever exists. Sums run in a fixed order.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cae_seg.models.ops.cpu.loss import SummedLoss, progressive_cross_entropy
from cae_seg.models.ops.resize import (
    bands,
    constant,
    interpolation_matrix,
    resize_bilinear,
    tile_shape,
    upsample_tile,
)

# A logit that leaves nothing to the others of its pixel, in single precision.
_SURE = 3e4


class PixelLoss(NamedTuple):
    """Loss and accuracy of a batch."""

    loss: Tensor  # weighted mean over all pixels, ignored ones counted in the denominator
    accuracy: Tensor  # percent of the pixels that are not ignored, shape (1,)


def upsampled_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    ignore_index: int,
    align_corners: bool,
    tiled: bool,
    progressive: bool = False,
    weight: float = 1.0,
) -> PixelLoss:
    """Return the cross entropy of `logits`, resized to the size of `labels`.

    Args:
        logits: (N, classes, h, w).
        labels: (N, H, W), integers in 0 … classes − 1, or `ignore_index`.
        ignore_index: label that adds nothing to the loss but counts in its mean, as published.
        align_corners: of the resizing.
        tiled: work tile by tile; else the plain form with full-size logits.
        progressive: where it applies on the CPU, make tiles by `progressive_cross_entropy`.
        weight: factor on the loss.
    """
    labels = labels.long()
    if tiled:
        total, hits, ignored = _TiledCrossEntropy.apply(
            logits, labels, ignore_index, align_corners, progressive
        )
    else:
        full = resize_bilinear(logits.float(), labels.shape[1:], align_corners)
        # Flattened: the two-dimensional loss has no deterministic backward on CUDA.
        flat, target = full.permute(0, 2, 3, 1).flatten(0, 2), labels.flatten()
        total = F.cross_entropy(flat, target, reduction="none", ignore_index=ignore_index).sum()
        hits = (flat.argmax(1) == target).sum()
        ignored = (labels == ignore_index).sum()
    counted = (labels.numel() - ignored).clamp_min(1)
    return PixelLoss(total * (weight / labels.numel()), (100 * hits / counted).view(1))


class _TiledCrossEntropy(torch.autograd.Function):
    """Sum of the cross entropy, pixels predicted right, pixels that are ignored."""

    @staticmethod
    def forward(
        ctx,
        logits: Tensor,
        labels: Tensor,
        ignore_index: int,
        align_corners: bool,
        progressive: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        with_gradient, result = ctx.needs_input_grad[0], None
        with torch.autocast(logits.device.type, enabled=False):
            if progressive and logits.device.type == "cpu" and not align_corners:
                result = progressive_cross_entropy(
                    logits.detach().float(), labels, ignore_index, with_gradient=with_gradient
                )
            if result is None:
                result = _summed_loss(logits, labels, ignore_index, align_corners, with_gradient)
        total, *counts, gradient = result
        ctx.save_for_backward(gradient)
        ctx.dtype = logits.dtype
        ctx.mark_non_differentiable(*counts)
        ctx.set_materialize_grads(False)
        return total.float(), *counts

    @staticmethod
    def backward(ctx, by_total: Tensor, *_: None) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        # Scaled in float32 before the cast: half-precision gradients of a mean would vanish.
        scaled = torch.mul(gradient, by_total, out=torch.empty_like(gradient, dtype=ctx.dtype))
        return scaled, None, None, None, None


def _summed_loss(
    logits: Tensor, labels: Tensor, ignore_index: int, align_corners: bool, with_gradient: bool
) -> SummedLoss:
    coarse = logits.detach().permute(0, 2, 3, 1).float().contiguous()  # N, h, w, classes
    gradient = _Gradient(coarse) if with_gradient else None
    sums = [
        _tile_loss(tile, ignore_index, gradient) for tile in _tiles(coarse, labels, align_corners)
    ]
    total, hits, ignored = (
        part[0] if len(part) == 1 else sum(part) for part in zip(*sums, strict=True)
    )
    return SummedLoss(total, hits, ignored, gradient and gradient.total.permute(0, 3, 1, 2))


class _Tile(NamedTuple):
    """A part of the output, and what it is computed from."""

    coarse: Tensor  # N, h, w, classes
    source: tuple[slice, slice]  # rows and columns of `coarse` that the tile touches
    down: Tensor  # rows of the tile, rows of the source
    across: Tensor
    target: Tensor  # N, rows, columns


def _tiles(coarse: Tensor, labels: Tensor, align_corners: bool) -> Iterator[_Tile]:
    sizes = list(zip(coarse.shape[1:3], labels.shape[1:], strict=True))
    tile = tile_shape(coarse, tuple(labels.shape[1:]))
    matrices = [interpolation_matrix(*size, align_corners) for size in sizes]
    rows, cols = (constant("interpolation", *size, align_corners, like=coarse) for size in sizes)
    for out_rows, in_rows in bands(matrices[0], tile[0]):
        for out_cols, in_cols in bands(matrices[1], tile[1]):
            yield _Tile(
                coarse,
                (in_rows, in_cols),
                rows[out_rows, in_rows],
                cols[out_cols, in_cols],
                labels[:, out_rows, out_cols],
            )


def _tile_loss(
    tile: _Tile, ignore_index: int, gradient: "_Gradient | None"
) -> tuple[Tensor, Tensor, Tensor]:
    """Return loss, hits and ignored pixels of a tile; add its gradient to `gradient`."""
    source = (slice(None), *tile.source)
    logits = upsample_tile(tile.coarse[source], tile.down, tile.across)
    ignored = tile.target == ignore_index
    index = tile.target.masked_fill(ignored, 0).unsqueeze(-1)
    best, predicted = logits.max(-1, keepdim=True)
    hits = (predicted.squeeze(-1) == tile.target).sum()
    picked = logits.gather(-1, index)
    # Where the label is ignored all of the share goes to one class, which the gradient takes off.
    logits.scatter_(-1, index, picked.masked_fill(ignored.unsqueeze(-1), _SURE))
    share = logits.softmax(-1)
    # The share of the best class is one over the sum that normalises all of them, never tiny.
    loss = (best - share.gather(-1, predicted).log_()).sub_(picked).squeeze(-1)
    loss = loss.masked_fill_(ignored, 0).sum(dtype=torch.float64)
    if gradient is not None:
        share.scatter_(-1, index, share.gather(-1, index).sub_(1))
        gradient.add(source, upsample_tile(share, tile.down.t(), tile.across.t()))
    return loss, hits, ignored.sum()


class _Gradient:
    """The sum of the tiles' gradients; that of a single tile is taken as it is."""

    def __init__(self, coarse: Tensor) -> None:
        self._coarse = coarse
        self.total: Tensor | None = None

    def add(self, source: tuple[slice, ...], part: Tensor) -> None:
        if self.total is None and part.shape == self._coarse.shape:
            self.total = part
            return
        if self.total is None:
            self.total = torch.zeros_like(self._coarse)
        self.total[source].add_(part)

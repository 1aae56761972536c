"""Cross entropy of logits that are upsampled by a whole factor, with few exponentials.

Between two rows of the coarse map an upsampled logit is a linear function of the row, so that its
exponential is a geometric progression: few exponentials give all rows of such a gap, by
multiplication. And as bilinear weights sum to one, no upsampled logit exceeds the upsampled maximum
of the classes: taken off the coarse map, it is taken off every pixel.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cae_seg.models.ops.cpu.memory import scratch
from cae_seg.models.ops.resize import bands, constant, interpolation_matrix

# Logits no further apart than this have exponentials that single precision represents.
_SPREAD = 80.0
# Of the exponentials that are at hand at once; wider tiles would multiply with more zeros.
_TILE_COLUMNS, _TILE_BYTES = 64, 4 * 2**20


class SummedLoss(NamedTuple):
    """What `progressive_cross_entropy` returns."""

    total: Tensor  # float64
    hits: Tensor  # pixels whose label has the largest logit
    ignored: Tensor  # pixels
    gradient: Tensor | None  # of `total`, shaped as the logits


def progressive_cross_entropy(
    logits: Tensor, labels: Tensor, ignore_index: int, *, with_gradient: bool
) -> SummedLoss | None:
    """Return the summed cross entropy of `logits` after bilinear upsampling, corners not aligned.

    Args:
        logits: (N, classes, h, w), float32, on the CPU.
        labels: (N, H, W), int64.
        ignore_index: label that adds nothing.
        with_gradient: compute the gradient too.

    Returns:
        None where another way is needed: H is no multiple of h, the logits of a pixel are too far
        apart or not finite, or several of them are its largest.
    """
    height, h = labels.shape[1], logits.shape[2]
    if height % h or height == h:
        return None
    best = logits.amax(1, keepdim=True)
    apart = (best - logits.amin(1, keepdim=True)).max()
    if not apart < _SPREAD or (logits == best).sum() > best.numel():
        return None
    gradient = torch.empty_like(logits) if with_gradient else None
    total = hits = 0
    for i, image in enumerate(zip(logits - best, _by_gap(labels, h, ignore_index), strict=True)):
        loss, right, by_rows = _image_loss(*image, ignore_index, with_gradient)
        total, hits = total + loss, hits + right
        if gradient is not None:
            gradient[i] = by_rows
    return SummedLoss(total, hits, (labels == ignore_index).sum(), gradient)


def _by_gap(labels: Tensor, h: int, ignore_index: int) -> Tensor:
    """Return labels as (N, rows of a gap, gaps, W); what is outside of the image is ignored."""
    factor = labels.shape[1] // h
    below = factor // 2
    padded = F.pad(labels, (0, 0, factor - below, below), value=ignore_index)
    return padded.unflatten(1, (h + 1, factor)).transpose(1, 2)


def _image_loss(
    logits: Tensor, labels: Tensor, ignore_index: int, with_gradient: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return loss, hits and gradient of logits (classes, h, w) none of which is above 0."""
    classes, h, w = logits.shape
    rows = scratch.take("coarse", h + 2, classes, w)
    rows[1:-1] = logits.transpose(0, 1)
    rows[0], rows[-1] = rows[1], rows[-2]
    gradient = torch.zeros_like(rows) if with_gradient else None
    parts = [_tile_loss(tile, ignore_index, gradient) for tile in _tiles(rows, labels)]
    total, hits = (sum(part) for part in zip(*parts, strict=True))
    if with_gradient:
        gradient[1] += gradient[0]
        gradient[-2] += gradient[-1]
        gradient = gradient[1:-1].transpose(0, 1)
    return total, hits, gradient


class _Tile(NamedTuple):
    """Some columns of successive gaps."""

    rows: Tensor  # gaps + 1, classes, source columns: the rows around the gaps
    across: Tensor  # source columns, columns
    source: tuple[slice, slice, slice]  # where `rows` are in the map
    labels: Tensor  # rows of a gap, gaps, 1, columns


def _tiles(rows: Tensor, labels: Tensor) -> Iterator[_Tile]:
    _, classes, w = rows.shape
    factor, gaps, width = labels.shape
    across = constant("interpolation", w, width, False, like=rows)
    step = max(1, _TILE_BYTES // (4 * factor * classes * _TILE_COLUMNS))
    for columns, touched in bands(interpolation_matrix(w, width), _TILE_COLUMNS):
        for first in range(0, gaps, step):
            last = min(first + step, gaps)
            source = (slice(first, last + 1), slice(None), touched)
            target = labels[:, first:last, None, columns].contiguous()
            yield _Tile(rows[source], across[columns, touched].t(), source, target)


def _tile_loss(tile: _Tile, ignore_index: int, gradient: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return loss and hits of a tile; add its gradient to `gradient`."""
    factor = len(tile.labels)
    shares = (torch.arange(factor) + (0.5 if factor % 2 == 0 else 0)) / factor  # of the lower row
    exponentials = _exponentials(torch.matmul(tile.rows, tile.across), shares)
    counted = tile.labels != ignore_index
    index = tile.labels.masked_fill(~counted, 0)
    picked, sums = exponentials.gather(2, index), exponentials.sum(2, keepdim=True)
    hits = ((picked == exponentials.amax(2, keepdim=True)) & counted).sum()
    loss = (sums / picked).log_().mul_(counted).sum(dtype=torch.float64)
    if gradient is not None:
        probability = exponentials.mul_(counted / sums)
        probability.scatter_add_(2, index, counted.float().neg_())
        _, gaps, classes, columns = probability.shape
        to_rows = scratch.take("to rows", 2, gaps * classes * columns)
        torch.mm(torch.stack([1 - shares, shares]), probability.view(factor, -1), out=to_rows)
        upper, lower = torch.matmul(to_rows.view(2, gaps, classes, columns), tile.across.t())
        gradient[tile.source][:-1] += upper
        gradient[tile.source][1:] += lower
    return loss, hits


def _exponentials(rows: Tensor, shares: Tensor) -> Tensor:
    """Return the exponentials between rows of logits.

    Args:
        rows: (gaps + 1, classes, columns).
        shares: weight of the row below a gap in each row of the gap, in equal steps of one over
            their number.

    Returns:
        (rows of a gap, gaps, classes, columns), which the next call overwrites.
    """
    factor, step = len(shares), rows[1:] - rows[:-1]
    result = scratch.take("exponentials", factor, *step.shape)
    torch.add(rows[:-1], step, alpha=float(shares[0]), out=result[0]).exp_()
    ratio, done, fresh = torch.empty_like(step), 1, True
    while done < factor:
        if fresh:
            torch.mul(step, done / factor, out=ratio).exp_()
        else:  # every second time: each squaring doubles the error
            ratio.mul_(ratio)
        more = min(done, factor - done)
        torch.mul(result[:more], ratio, out=result[done : done + more])
        done, fresh = done + more, not fresh
    return result

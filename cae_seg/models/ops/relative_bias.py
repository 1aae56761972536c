"""A table of relative positions, laid out as the matrix that is added to attention scores.

The layout is one gather along the table. Its gradient is a sum over the pairs of each offset, that
is over diagonals, which a copy turns into columns: rows of `n` elements that are written `2n − 2`
apart into rows of `2n − 1` each begin one column earlier than the row above. One copy and one sum
per axis, in a fixed order; torch's gradient of indexing adds single elements in no fixed order.
"""

from functools import cache

import numpy as np
import torch
from torch import Tensor

# Fused attention kernels copy a bias whose rows do not begin at multiples of this many elements.
ROW_ALIGNMENT = 16


class RelativeBias(torch.autograd.Function):
    """Equal to `table[relative_position_index]`, heads first, with a deterministic gradient.

    The gradient is summed in the table's own precision.
    """

    @staticmethod
    def forward(ctx, table: Tensor, height: int, width: int, values: Tensor) -> Tensor:
        """Return (heads, N, N) with N = 1 + height·width of a ((2h−1)(2w−1)+3, heads) table.

        The last three rows of the table are those of class token to patch, patch to class token
        and class token to itself. `values` is the table in the precision of the result.
        """
        ctx.grid, ctx.dtype = (height, width), table.dtype
        by_head = values.detach().t()
        if values.device.type == "cpu":
            by_head = by_head.contiguous()
        bias = by_head.index_select(1, _index(height, width, table.device))
        return bias.view(len(by_head), 1 + height * width, -1)[..., : 1 + height * width]

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None, None]:
        """Sum the gradient of (heads, N, N) over each pair of offsets."""
        height, width = ctx.grid
        heads, dtype = len(grad), ctx.dtype
        pairs = grad[:, 1:, 1:].unflatten(2, (height, width)).unflatten(1, (height, width))
        # Heads, query row, query column, key row, key column: key before query on each axis.
        down = _sum_diagonals(pairs.permute(0, 3, 1, 2, 4), dtype)  # heads, offset, columns
        both = _sum_diagonals(down.permute(1, 3, 2, 0), dtype)  # offset down, offset across, heads
        ends = grad[:, 0, 1:].sum(1, dtype=dtype), grad[:, 1:, 0].sum(1, dtype=dtype), grad[:, 0, 0]
        table = torch.cat([both.view(-1, heads), *(end[None] for end in ends)])
        return table.to(dtype), None, None, None


def _sum_diagonals(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the sums of `x[:, i, j]` over i at each j − i: (M, n, n, …) → (M, 2n − 1, …)."""
    outer, n, _, *inner = x.shape
    padded = _zeros((outer, n * (2 * n - 1), *inner), x.dtype, x.device)
    first, step, *rest = padded.stride()
    skewed = padded.as_strided(x.shape, (first, (2 * n - 2) * step, step, *rest), (n - 1) * step)
    skewed.copy_(x)
    return padded.unflatten(1, (n, 2 * n - 1)).sum(1, dtype=dtype)


@cache
def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return memory that is zero outside of the places that `_sum_diagonals` writes."""
    return torch.zeros(shape, dtype=dtype, device=device)


@cache
def _index(height: int, width: int, device: torch.device) -> Tensor:
    """Return the row of the table for each score, rows padded to `ROW_ALIGNMENT`, flat."""
    tokens = 1 + height * width
    row, column = np.divmod(np.arange(height * width, dtype=np.int32), width)
    down = row[:, None] - row + height - 1
    across = column[:, None] - column + width - 1
    last = (2 * height - 1) * (2 * width - 1)
    index = np.zeros((tokens, -(-tokens // ROW_ALIGNMENT) * ROW_ALIGNMENT), np.int32)
    index[1:, 1:tokens] = down * (2 * width - 1) + across
    index[0, 1:tokens], index[1:, 0], index[0, 0] = last, last + 1, last + 2
    return torch.from_numpy(index.reshape(-1)).to(device)

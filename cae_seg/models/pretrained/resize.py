"""Position embeddings and relative position tables at another grid."""

import math

import numpy as np
import torch
from scipy.interpolate import RectBivariateSpline
from torch import Tensor
from torch.nn import functional as F


def resize_position_embedding(
    embedding: Tensor, grid: tuple[int, int], *, class_token: bool = True, mode: str = "bicubic"
) -> Tensor | None:
    """Resize (1, t + s·s, C) to (1, 1 + h·w, C), the first row (class token) kept.

    The source may have no row for the class token (t = 0), which gets one of zeros, or a second one
    for the token of distillation (t = 2), which is dropped.

    Args:
        embedding: of a square grid.
        grid: patches down and across in the target.
        class_token: whether the target has a row for the class token.
        mode: of `F.interpolate`; corners are not aligned and nothing is smoothed, as published.

    Returns:
        The resized embedding, or None where the source is no square.
    """
    patches = embedding.float()
    first = patches.new_zeros(1, 1, patches.shape[2])
    for extra in range(3):
        side = math.isqrt(patches.shape[1] - extra)
        if side**2 == patches.shape[1] - extra:
            break
    else:
        return None
    if extra:
        first, patches = patches[:, :1], patches[:, extra:]
    patches = patches.transpose(1, 2).unflatten(2, (side, side))
    if grid != (side, side):
        patches = F.interpolate(patches, size=grid, mode=mode, align_corners=False)
    rows = patches.flatten(2).transpose(1, 2)
    return torch.cat([first, rows], dim=1) if class_token else rows


def resize_bias_table(table: Tensor, rows: int) -> Tensor | None:
    """Resize a table of square windows ((2s−1)², heads) to (rows, heads), bicubically: Swin's rule.

    None where either is no square.
    """
    source, target = math.isqrt(table.shape[0]), math.isqrt(rows)
    if source**2 != table.shape[0] or target**2 != rows:
        return None
    square = table.float().t().reshape(1, -1, source, source)
    resized = F.interpolate(square, size=(target, target), mode="bicubic", align_corners=False)
    return resized.flatten(2)[0].t().contiguous()


def resize_geometric_bias_table(table: Tensor, grid: tuple[int, int]) -> Tensor | None:
    """Resize a relative position table of a square grid to another grid.

    Offsets of the source are spread over those of the target in geometric steps, dense near zero,
    and a cubic spline is read at the target's whole offsets. The last three rows (class token)
    stay. BEiT's rule, per axis, so that the target may be no square.

    Args:
        table: ((2s−1)² + 3, heads).
        grid: patches down and across in the target.

    Returns:
        ((2h−1)(2w−1) + 3, heads), or None where the source is no square.
    """
    side = math.isqrt(max(table.shape[0] - 3, 0))
    if side**2 != table.shape[0] - 3 or side % 2 == 0:
        return None
    sources = [geometric_offsets(side, 2 * n - 1) for n in grid]
    targets = [np.arange(-(n - 1), n, dtype=np.float64) for n in grid]
    degree = min(3, side - 1)
    columns = []
    for head in table[:-3].float().numpy().T.reshape(-1, side, side):
        if side == 1:
            columns.append(np.full(tuple(map(len, targets)), head[0, 0]).ravel())
            continue
        spline = RectBivariateSpline(*sources, head, kx=degree, ky=degree, s=0)
        columns.append(spline(*targets).ravel())
    offsets = torch.from_numpy(np.stack(columns, axis=1)).float()
    return torch.cat([offsets, table[-3:].float()])


def geometric_offsets(source: int, target: int) -> np.ndarray:
    """Return `source` coordinates, symmetric about 0, in geometric steps out to ±(target // 2).

    The ratio is the last midpoint of a bisection of [1.01, 1.5] to 1e-6, as in the published code
    (13 → 31: 1.365491314; 27 → 63: 1.134917812); the outermost coordinate misses by a little.
    """
    steps, reach = source // 2, target // 2
    low, high = 1.01, 1.5
    ratio = low
    while high - low > 1e-6:
        ratio = (low + high) / 2
        if (1 - ratio**steps) / (1 - ratio) > reach:
            high = ratio
        else:
            low = ratio
    outward = np.cumsum(ratio ** np.arange(steps, dtype=np.float64))
    return np.concatenate([-outward[::-1], [0.0], outward])

"""Matrices of sliding windows: equal to windows joined one by one, and kept within bounds."""

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cae_seg.models.ops.cache import ByteCache
from cae_seg.models.ops.resize import interpolation_matrix
from cae_seg.models.ops.windows import WindowAxis, bands_of, resampling_matrix


def joined(axis: WindowAxis, coarse: torch.Tensor, size: int) -> torch.Tensor:
    """Upsample each window (windows, coarse), average them, resize: as mmsegmentation does."""
    total, covered = torch.zeros(axis.length), torch.zeros(axis.length)
    for start, logits in zip(axis.starts, coarse, strict=True):
        full = F.interpolate(logits[None, None], size=(axis.crop,), mode="linear")[0, 0]
        stop = min(start + axis.crop, axis.length)
        total[start:stop] += full[: stop - start]
        covered[start:stop] += 1
    return F.interpolate((total / covered)[None, None], size=(size,), mode="linear")[0, 0]


@pytest.mark.parametrize(
    ("axis", "size"),
    [
        (WindowAxis(64, 64, 43), 64),
        (WindowAxis(150, 64, 43), 195),
        (WindowAxis(30, 64, 43), 41),
        (WindowAxis(200, 64, 43), 77),
    ],
)
def test_one_matrix_joins_all_windows(axis, size):
    coarse = torch.randn(len(axis.starts), 16)
    found = resampling_matrix(axis, 16, size, False) @ coarse.double().ravel().numpy()
    np.testing.assert_allclose(found, joined(axis, coarse, size).numpy(), atol=3e-6)


@pytest.mark.parametrize("tile", [7, 32, 1000])
@pytest.mark.parametrize("flipped", [False, True])
def test_bands_hold_the_whole_matrix(tile, flipped):
    matrix = resampling_matrix(WindowAxis(150, 64, 43), 16, 195, False)
    dense = matrix.toarray()[::-1] if flipped else matrix.toarray()
    rebuilt = np.zeros_like(dense)
    for band in bands_of(matrix, tile, flipped):
        rebuilt[band.out, band.source] = band.values
    np.testing.assert_allclose(rebuilt, dense, atol=1e-7)


def test_matrices_of_many_sizes_stay_within_bounds():
    rng = random.Random(0)
    for _ in range(150):
        width, out = rng.randrange(512, 1400), rng.randrange(300, 2000)
        resampling_matrix(WindowAxis(width, 512, 341), 128, out, False)
        interpolation_matrix(128, out)
    # 512 × 1400 pixels took 20 MB a size as dense matrices: 3 GB.
    kept = resampling_matrix.cache.bytes + interpolation_matrix.cache.bytes
    assert 2**20 < kept <= 48 * 2**20


def test_the_cache_forgets_what_was_unused_for_longest():
    cache, made = ByteCache(10, len), []

    def get(key: str) -> bytes:
        return cache.get(key, lambda: made.append(key) or bytes(4))

    for key in ("a", "b", "a", "c", "a", "b"):
        get(key)
    assert made == ["a", "b", "c", "b"]
    assert cache.bytes == 8

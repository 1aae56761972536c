import pytest
import torch
import torch.nn.functional as F

from cae_seg.models.ops.resize import (
    bands,
    interpolation_matrix,
    pyramid_pool,
    resize_bilinear,
)

SIZES = [((4, 6), (16, 24)), ((16, 16), (2, 2)), ((5, 7), (13, 8)), ((1, 3), (6, 5)),
         ((100, 150), (130, 195)), ((6, 6), (1, 1)), ((8, 8), (8, 8))]  # fmt: skip


def image(h: int, w: int, layout: torch.memory_format) -> torch.Tensor:
    x = torch.randn(2, 3, h, w, generator=torch.Generator().manual_seed(h * w))
    return x.contiguous(memory_format=layout).requires_grad_()


def gradient(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    weights = torch.linspace(-1, 1, y.numel()).view(y.shape)
    return torch.autograd.grad((y * weights).sum(), x)[0]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(("size_in", "size_out"), SIZES)
def test_resize_agrees_with_torch(size_in, size_out, align_corners, layout):
    x = image(*size_in, layout)
    ours = resize_bilinear(x, size_out, align_corners)
    torchs = F.interpolate(x, size_out, mode="bilinear", align_corners=align_corners)
    torch.testing.assert_close(ours, torchs, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradient(ours, x), gradient(torchs, x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("size_in", [(16, 16), (7, 5), (4, 4)])
def test_pooling_agrees_with_torch(size_in, layout):
    x = image(*size_in, layout)
    for i, size in enumerate((1, 2, 3, 6)):
        ours = pyramid_pool(x, (1, 2, 3, 6))[i]
        torchs = F.adaptive_avg_pool2d(x, size)
        torch.testing.assert_close(ours, torchs, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(gradient(ours, x), gradient(torchs, x), rtol=1e-5, atol=1e-5)


def test_channels_last_stays():
    y = resize_bilinear(image(4, 4, torch.channels_last), (8, 8))
    assert y.is_contiguous(memory_format=torch.channels_last)


def test_bands_cover_the_matrix():
    matrix = interpolation_matrix(32, 100)
    rest = matrix.copy()
    for rows, cols in bands(matrix, 16):
        rest[rows, cols] = 0
        assert cols.stop - cols.start <= 8
    assert not rest.any()


def test_matrices_made_in_inference_mode_serve_training():
    x = torch.randn(1, 2, 3, 5)
    with torch.inference_mode():
        resize_bilinear(x, (7, 11))
    resize_bilinear(x.requires_grad_(), (7, 11)).sum().backward()

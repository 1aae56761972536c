import pytest
import torch
import torch.nn.functional as F

from cae_seg.errors import UserError
from cae_seg.models.accelerate import FAST_PATHS, resolve
from cae_seg.models.ops.convolution import (
    Deconvolution,
    Unexpanded,
    conv3x3,
    conv3x3_of_concatenated,
)


def relative(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def gradients(y: torch.Tensor, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return torch.autograd.grad((y * noise(*y.shape)).sum(), inputs)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", [(2, 24, 16, 12), (1, 8, 4, 4), (3, 16, 72, 100)])
def test_winograd_agrees_with_the_direct_form(shape, layout):
    x = noise(*shape).contiguous(memory_format=layout).requires_grad_()
    weight = (noise(20, shape[1], 3, 3) / shape[1] ** 0.5).requires_grad_()
    direct = F.conv2d(x, weight, padding=1)
    ours = conv3x3(x, weight, resolve({"winograd": "always"}))
    assert "Winograd" in ours.grad_fn.next_functions[0][0].name()
    assert relative(ours, direct) < 2e-6
    for mine, theirs in zip(gradients(ours, x, weight), gradients(direct, x, weight), strict=True):
        assert relative(mine, theirs) < 3e-6


@pytest.mark.parametrize("shape", [(1, 8, 6, 8), (1, 8, 8, 7)])
def test_sizes_off_the_tile_grid_take_the_direct_form(shape):
    x, weight = noise(*shape), noise(8, 8, 3, 3)
    ours = conv3x3(x, weight, resolve("always"))
    assert torch.equal(ours, F.conv2d(x, weight, padding=1))


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("sizes", [[(16, 16), (8, 8), (4, 4), (2, 2)], [(2, 2), (1, 1), (3, 3)],
                                   [(12, 20), (6, 10), (12, 20)]])  # fmt: skip
def test_fused_bottleneck_agrees_with_upsample_and_concatenate(sizes, align_corners):
    channels = [5, 6, 7, 8][: len(sizes)]
    maps = [noise(2, c, *s).requires_grad_() for c, s in zip(channels, sizes, strict=True)]
    weight = noise(9, sum(channels), 3, 3).requires_grad_()
    resized = [
        F.interpolate(x, sizes[0], mode="bilinear", align_corners=align_corners) for x in maps
    ]
    plain = F.conv2d(torch.cat(resized, 1), weight, padding=1)
    expected = gradients(plain, *maps, weight)
    for switches in (resolve(True), resolve(False), resolve("always")):
        ours = conv3x3_of_concatenated(maps, weight, switches, align_corners)
        assert relative(ours, plain) < 2e-6
        found = gradients(ours, *maps, weight)
        # Concatenation may bring the direct maps forward: the order of the weight must not change.
        for mine, theirs in zip(found, expected, strict=True):
            assert relative(mine, theirs) < 5e-6


def test_bfloat16_autocast_keeps_the_plain_form():
    with torch.autocast("cpu", torch.bfloat16):
        assert Deconvolution(6, 5)(noise(1, 6, 3, 4)).dtype == torch.bfloat16
    x, weight = noise(1, 8, 8, 8), noise(8, 8, 3, 3)
    with torch.autocast("cpu", torch.bfloat16):
        y = conv3x3_of_concatenated(
            [x, noise(1, 8, 4, 4)], torch.cat([weight] * 2, 1), resolve("always")
        )
    assert y.dtype == torch.bfloat16


def test_deconvolution_agrees_with_torch():
    layer, x = Deconvolution(6, 5), noise(2, 6, 3, 4).requires_grad_()
    fast = layer(x)
    layer.fast = False
    plain = layer(x)
    assert fast.is_contiguous(memory_format=torch.channels_last)
    assert relative(fast, plain) < 1e-6
    inputs = x, layer.weight, layer.bias
    for mine, theirs in zip(gradients(fast, *inputs), gradients(plain, *inputs), strict=True):
        assert relative(mine, theirs) < 1e-6


@pytest.mark.parametrize("size", [(3, 4), (2, 2)])  # enough pixels for six channels, and too few
@pytest.mark.parametrize("always", [False, True])
def test_merged_convolutions_agree_with_one_after_the_other(size, always):
    layer, x = Deconvolution(6, 5), noise(2, 6, *size).requires_grad_()
    weight = noise(7, 5, 1, 1).requires_grad_()
    inputs = x, layer.weight, layer.bias, weight
    plain = F.conv2d(F.conv_transpose2d(x, layer.weight, layer.bias, stride=2), weight)
    merged = Unexpanded(x, layer).conv1x1(weight, weight, always=always)
    assert merged.is_contiguous(memory_format=torch.channels_last)
    assert relative(merged, plain) < 1e-6
    for mine, theirs in zip(gradients(merged, *inputs), gradients(plain, *inputs), strict=True):
        assert relative(mine, theirs) < 1e-6


@pytest.mark.parametrize("frozen", [("x",), ("weight", "bias"), ("mixing",), ("x", "mixing")])
def test_merged_convolutions_train_what_is_not_frozen(frozen):
    layer, x = Deconvolution(6, 5), noise(2, 6, 3, 4)
    parts = {"x": x, "weight": layer.weight, "bias": layer.bias, "mixing": noise(7, 5, 1, 1)}
    for name, part in parts.items():
        part.requires_grad_(name not in frozen)
    trained = [part for name, part in parts.items() if name not in frozen]
    mixing = parts["mixing"]
    plain = F.conv2d(F.conv_transpose2d(x, layer.weight, layer.bias, stride=2), mixing)
    merged = Unexpanded(x, layer).conv1x1(mixing, mixing, always=True)
    for mine, theirs in zip(gradients(merged, *trained), gradients(plain, *trained), strict=True):
        assert relative(mine, theirs) < 1e-6


def test_inference_mode_then_training():
    weight = noise(8, 8, 3, 3).requires_grad_()
    switches = resolve("always")
    with torch.inference_mode():
        conv3x3(noise(1, 8, 16, 16), weight, switches)
    conv3x3(noise(1, 8, 16, 16), weight, switches).sum().backward()


def test_switches():
    assert resolve(None) == dict.fromkeys(FAST_PATHS, True)
    assert resolve({"winograd": False}) == dict.fromkeys(FAST_PATHS, True) | {"winograd": False}
    with pytest.raises(UserError, match="winograde"):
        resolve({"winograde": False})
    with pytest.raises(UserError, match="fused_loss"):
        resolve({"fused_loss": 3})

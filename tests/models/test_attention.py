import pytest
import torch

from cae_seg.models.ops.attention import attend


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def plain(qkv: torch.Tensor, bias: torch.Tensor, scale: float) -> torch.Tensor:
    """Attention as it is written down."""
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    weights = (scale * q @ k.transpose(-1, -2) + bias).softmax(-1)
    return (weights @ v).transpose(1, 2).flatten(2)


def padded_bias(heads: int, tokens: int) -> torch.Tensor:
    """Rows further apart than they are long, as the backbone lays its bias out."""
    return noise(1, heads, tokens, -(-tokens // 16) * 16, seed=2)[..., :tokens]


@pytest.mark.parametrize(("heads", "tokens"), [(3, 17), (2, 1025)])
def test_result_and_gradients_are_those_of_the_formula(heads, tokens):
    qkv, grad = noise(2, tokens, 3, heads, 8), noise(2, tokens, heads * 8, seed=1)
    bias = padded_bias(heads, tokens)
    found = []
    for function in (attend, plain):
        inputs = qkv.clone().requires_grad_(), bias.detach().requires_grad_()
        out = function(*inputs, 0.3)
        found.append((out, *torch.autograd.grad(out, inputs, grad)))
    for ours, expected in zip(*found, strict=True):
        assert (ours - expected).norm() < 2e-6 * expected.norm()


def test_without_bias_in_half_precision_and_with_dropout():
    qkv, bias = noise(1, 9, 3, 2, 4), noise(1, 2, 9, 9)
    assert attend(qkv, None, 0.5).shape == (1, 9, 8)
    assert attend(qkv.bfloat16(), bias.bfloat16(), 0.5).dtype == torch.bfloat16
    assert not attend(qkv, bias, 0.5, dropout=0.9).equal(attend(qkv, bias, 0.5))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_training_and_evaluation_on_a_gpu_use_the_same_kernel(dtype):
    qkv, bias = noise(2, 1025, 3, 2, 64), padded_bias(2, 1025)
    qkv, bias = (x.cuda().to(dtype) for x in (qkv, bias))
    calls = []
    for trains in (True, False):
        with torch.set_grad_enabled(trains), torch.profiler.profile() as profile:
            attend(qkv.clone().requires_grad_(trains), bias, 0.1)
        calls.append({e.key for e in profile.key_averages() if "efficient_attention" in e.key})
    assert calls[0]
    assert calls[0] == calls[1]

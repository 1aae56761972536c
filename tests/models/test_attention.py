import pytest
import torch

from cae_seg.models.ops.attention import attend


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("heads", "tokens"), [(3, 17), (5, 900)])
def test_tiles_agree_with_torch(heads, tokens):
    qkv, grad = noise(2, tokens, 3, heads, 8), noise(2, tokens, heads * 8, seed=1)
    # Rows further apart than they are long, as the backbone lays its bias out.
    bias = noise(1, heads, tokens, tokens + 5, seed=2)[..., :tokens]
    found = []
    for tiled in ("always", False):
        inputs = qkv.clone().requires_grad_(), bias.detach().requires_grad_()
        out = attend(*inputs, 0.3, tiled=tiled)
        assert ("TiledAttention" in str(out.grad_fn.next_functions)) == bool(tiled)
        found.append((out, *torch.autograd.grad(out, inputs, grad)))
    for ours, torchs in zip(*found, strict=True):
        assert (ours - torchs).norm() < 2e-6 * torchs.norm()


def test_what_does_not_fit_goes_to_torch():
    qkv, bias = noise(1, 9, 3, 2, 4), noise(1, 2, 9, 9)
    assert attend(qkv, None, 0.5).shape == (1, 9, 8)
    assert attend(qkv.bfloat16(), bias.bfloat16(), 0.5).dtype == torch.bfloat16
    assert "TiledAttention" not in str(attend(qkv.requires_grad_(), bias, 0.5).grad_fn)
    assert not attend(qkv, bias, 0.5, dropout=0.9).equal(attend(qkv, bias, 0.5))

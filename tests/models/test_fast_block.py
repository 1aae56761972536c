"""The fused block against timm's own way, at the published number of tokens."""

import pytest
import torch

from cae_seg.models.accelerate import resolve, switch
from cae_seg.models.backbones.cae import CAE
from cae_seg.models.layers.stochastic import set_randomness


def backbone(image: int, **overrides) -> CAE:
    torch.manual_seed(0)
    settings = {"qkv_bias": True, "init_values": 0.1, "drop_path_rate": 0.5} | overrides
    model = CAE(
        img_size=image, embed_dim=32, depth=4, num_heads=2, out_indices=(0, 1, 2, 3), **settings
    )
    for name, parameter in model.named_parameters():
        if name.endswith(("table", "bias", "gamma_1", "gamma_2")):
            torch.nn.init.normal_(parameter)
    return model.train()


def gradients(model: CAE, image: int, fast: bool, device: str = "cpu", dtype=None):
    """Return the maps and the gradients of one training step's backward pass."""
    switch(model, resolve({"fused_block": fast, "efficient_attention": fast}))
    model.to(device).zero_grad()
    set_randomness(model, seed=1, iteration=3, first_sample=0, samples=2, total=2)
    x = torch.randn(2, 3, image, image, generator=torch.Generator().manual_seed(1)).to(device)
    with torch.autocast(device, dtype or torch.float16, enabled=dtype is not None):
        maps = model(x)
    sum(level.float().square().mean() for level in maps).backward()
    return maps, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_close(found, expected, limit: float) -> None:
    """Compare tensors by norms, with a floor of the typical size for those that cancel out."""
    norms = sorted(float(grad.norm()) for grad in expected.values())
    floor = norms[len(norms) // 4]
    for name, grad in expected.items():
        error = float((found[name].float().cpu() - grad.float().cpu()).norm())
        assert error < limit * max(float(grad.norm()), floor), name


@pytest.mark.parametrize("overrides", [{}, {"init_values": None}, {"qkv_bias": False}])
def test_maps_and_gradients_are_those_of_the_plain_way(overrides):
    model = backbone(64, **overrides)
    maps, ours = gradients(model, 64, fast=True)
    plain_maps, plain = gradients(model, 64, fast=False)
    for found, expected in zip(maps, plain_maps, strict=True):
        assert (found - expected).norm() < 1e-5 * expected.norm()
    assert set(ours) == set(plain)
    assert_close(ours, plain, 1e-4)


def test_the_published_number_of_tokens():
    model = backbone(512)  # 1 025 tokens
    _, ours = gradients(model, 512, fast=True)
    _, plain = gradients(model, 512, fast=False)
    assert_close(ours, plain, 1e-3)


def test_autocast_casts_weights_and_keeps_gradients_in_single_precision():
    model = backbone(64)
    _, ours = gradients(model, 64, fast=True, dtype=torch.bfloat16)
    _, plain = gradients(model, 64, fast=False, dtype=torch.bfloat16)
    assert {grad.dtype for grad in ours.values()} == {torch.float32}
    assert_close(ours, plain, 0.1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("dtype", "limit"), [(None, 1e-2), (torch.float16, 0.1)])
def test_gradients_on_a_gpu_are_those_of_the_cpu(dtype, limit):
    """Gradients of 1 025 tokens, not losses, which hardly move in the warm-up."""
    _, expected = gradients(backbone(512), 512, fast=False)
    _, found = gradients(backbone(512), 512, fast=True, device="cuda", dtype=dtype)
    assert_close(found, expected, limit)

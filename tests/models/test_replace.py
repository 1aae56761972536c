import copy
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmseg.models.backbones import BEiT
from mmseg.models.backbones.beit import BEiTAttention
from torch import nn

import cae_seg.registration  # noqa: F401
from cae_seg.engine.acceleration import accelerate
from cae_seg.models.accelerate import resolve, switch
from cae_seg.models.layers.replace import FastBEiTAttention, replace_layers
from cae_seg.models.ops.convolution import Deconvolution

UPERNET = Path(__file__).parents[2] / "configs_local" / "cae" / "upernet"
CONFIG = UPERNET / "upernet_cae_base_12_512_slide_160k_ade20k_pt_1e-4.py"


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm().clamp_min(1e-12))


def beit() -> BEiT:
    torch.manual_seed(0)
    model = BEiT(img_size=64, embed_dims=32, num_layers=2, num_heads=4, out_indices=(0, 1))
    for name, parameter in model.named_parameters():
        if name.endswith("relative_position_bias_table"):
            nn.init.normal_(parameter)
    model.eval()  # returns nothing
    return model


@pytest.mark.parametrize("fast_paths", [True, False, "always"])
def test_beit_has_the_same_parameters_maps_and_gradients(fast_paths):
    stock = beit()
    ours = copy.deepcopy(stock)
    replace_layers(ours)
    switch(ours, resolve(fast_paths))
    assert sum(isinstance(layer, FastBEiTAttention) for layer in ours.modules()) == 2
    assert list(ours.state_dict()) == list(stock.state_dict())
    x = torch.randn(2, 3, 64, 64)
    for model in (stock, ours):
        sum(out.square().sum() for out in model(x)).backward()
    for found, expected in zip(ours(x), stock(x), strict=True):
        assert relative(found, expected) < 2e-6
    for (name, found), expected in zip(ours.named_parameters(), stock.parameters(), strict=True):
        if expected.grad is not None:
            assert relative(found.grad, expected.grad) < 2e-5, name


def test_only_what_is_equal_is_replaced():
    layers = nn.Sequential(
        nn.ConvTranspose2d(4, 3, 2, 2),
        nn.ConvTranspose2d(4, 3, 4, 2, 1),
        nn.ConvTranspose2d(4, 4, 2, 2, groups=2),
        nn.ConvTranspose2d(4, 3, 2, 2, bias=False),
        BEiTAttention(8, 2, (2, 2)),
    )
    replace_layers(layers)
    kinds = [type(layer) for layer in layers]
    assert kinds == [Deconvolution, *[nn.ConvTranspose2d] * 3, FastBEiTAttention]


def test_a_replaced_deconvolution_gives_the_same_numbers():
    stock = nn.Sequential(nn.ConvTranspose2d(4, 3, 2, 2))
    ours = copy.deepcopy(stock)
    replace_layers(ours)
    x = torch.randn(2, 4, 5, 6)
    assert relative(ours(x), stock(x)) < 1e-6


@pytest.mark.parametrize(("precision", "on"), [("fp16", True), ("apex", False)])
def test_apex_runs_without_what_follows_torchs_autocast(precision, on):
    config = Config.fromfile(CONFIG)
    config.precision = precision
    names = accelerate(config)
    assert "fused_loss" in names
    for name in ("fused_block", "fused_bottleneck", "matrix_deconvolution"):
        assert (name in names) == on
        assert config.model.fast_paths[name] == on

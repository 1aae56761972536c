import copy
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmseg.models.backbones import BEiT, MixVisionTransformer, VisionTransformer
from mmseg.models.backbones.beit import BEiTAttention
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import cae_seg.registration  # noqa: F401
from cae_seg.engine.acceleration import accelerate
from cae_seg.models.accelerate import resolve, switch
from cae_seg.models.layers.attention import FastBEiTAttention, FastMultiheadAttention
from cae_seg.models.layers.replace import replace_layers
from cae_seg.models.ops.convolution import Deconvolution

UPERNET = Path(__file__).parents[2] / "configs_local" / "cae" / "upernet"
CONFIG = UPERNET / "upernet_cae_base_12_512_slide_160k_ade20k_pt_1e-4.py"


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm().clamp_min(1e-12))


def beit() -> nn.Module:
    model = BEiT(img_size=64, embed_dims=32, num_layers=2, num_heads=4, out_indices=(0, 1))
    for name, parameter in model.named_parameters():
        if name.endswith("relative_position_bias_table"):
            nn.init.normal_(parameter)
    return model


def vit() -> nn.Module:
    return VisionTransformer(
        img_size=64, embed_dims=32, num_layers=2, num_heads=4, out_indices=(0, 1)
    )


def mit() -> nn.Module:
    """SegFormer's backbone: queries of all pixels, keys and values of a coarser map."""
    return MixVisionTransformer(
        embed_dims=16,
        num_layers=[1, 1],
        num_stages=2,
        num_heads=[1, 2],
        out_indices=(0, 1),
        sr_ratios=[2, 1],
        patch_sizes=[7, 3],
        strides=[4, 2],
    )


@pytest.mark.parametrize("fast_paths", [True, False, "always"])
@pytest.mark.parametrize(
    ("build", "kind"),
    [(beit, FastBEiTAttention), (vit, FastMultiheadAttention), (mit, FastMultiheadAttention)],
)
def test_backbones_have_the_same_parameters_maps_and_gradients(build, kind, fast_paths):
    torch.manual_seed(0)
    stock = build()
    stock.eval()  # BEiT's returns nothing
    ours = copy.deepcopy(stock)
    replace_layers(ours)
    switch(ours, resolve(fast_paths))
    assert sum(isinstance(layer, kind) for layer in ours.modules()) == 2
    assert list(ours.state_dict()) == list(stock.state_dict())
    x = torch.randn(2, 3, 64, 64)
    # Not the sum of squares: that of SegFormer's normalised maps is the same whatever the weights.
    weights = [torch.randn_like(out) for out in stock(x)]
    for model in (stock, ours):
        sum((out * w).sum() for out, w in zip(model(x), weights, strict=True)).backward()
    for found, expected in zip(ours(x), stock(x), strict=True):
        assert relative(found, expected) < 2e-6
    for (name, found), expected in zip(ours.named_parameters(), stock.parameters(), strict=True):
        if expected.grad is not None:
            assert relative(found.grad, expected.grad) < 2e-5, name


def test_attention_whose_weights_nobody_reads_does_not_make_them():
    model = vit()
    replace_layers(model)
    shapes = []
    softmax = torch.ops.aten._softmax.default

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function is softmax:
                shapes.append(args[0].shape)
            return function(*args, **(kwargs or {}))

    x = torch.randn(1, 3, 64, 64)
    for fast in (False, True):
        switch(model, resolve(fast))
        shapes.clear()
        with Watch():
            model(x)
        assert len(shapes) == (0 if fast else 2)


def test_only_what_is_equal_is_replaced():
    layers = nn.Sequential(
        nn.ConvTranspose2d(4, 3, 2, 2),
        nn.ConvTranspose2d(4, 3, 4, 2, 1),
        nn.ConvTranspose2d(4, 4, 2, 2, groups=2),
        nn.ConvTranspose2d(4, 3, 2, 2, bias=False),
        BEiTAttention(8, 2, (2, 2)),
        nn.MultiheadAttention(8, 2),
    )
    replace_layers(layers)
    kinds = [type(layer) for layer in layers]
    assert kinds == [
        Deconvolution,
        *[nn.ConvTranspose2d] * 3,
        FastBEiTAttention,
        nn.MultiheadAttention,
    ]


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

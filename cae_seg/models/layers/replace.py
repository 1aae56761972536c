"""Replace layers of a built model by ours, which have the same parameters and results."""

from collections.abc import Callable

import torch
from mmseg.models.backbones.beit import BEiTAttention
from mmseg.models.necks import Feature2Pyramid
from torch import Tensor, nn
from torch.nn import functional as F

from cae_seg.models.layers.pyramid import FastFeature2Pyramid
from cae_seg.models.ops.attention import attend
from cae_seg.models.ops.convolution import Deconvolution
from cae_seg.models.ops.relative_bias import RelativeBias


class FastBEiTAttention(BEiTAttention):
    """mmsegmentation's `BEiTAttention` as one fused kernel over a bias that is laid out once.

    Takes and returns tokens (B, N, C), class token first.
    """

    fast_path, fast = "efficient_attention", True

    def forward(self, x: Tensor) -> Tensor:
        """Attend over tokens."""
        bias = self.qkv.bias
        if self.bias == "qv_bias":
            bias = torch.cat([self.q_bias, torch.zeros_like(self.v_bias), self.v_bias])
        qkv = F.linear(x, self.qkv.weight, bias).unflatten(2, (3, self.num_heads, -1))
        table = self.relative_position_bias_table
        scores = RelativeBias.apply(table, *self.window_size, table.detach().to(qkv.dtype))
        dropout = self.attn_drop.p if self.training else 0.0
        out = attend(qkv, scores[None], self.scale, dropout=dropout, fast=self.fast)
        return self.proj_drop(self.proj(out))


def _is_twofold_deconvolution(layer: nn.Module) -> bool:
    return (
        type(layer) is nn.ConvTranspose2d
        and layer.kernel_size == layer.stride == (2, 2)
        and layer.padding == layer.output_padding == (0, 0)
        and layer.groups == 1
        and layer.bias is not None
    )


def _is_beit_attention(layer: nn.Module) -> bool:
    return type(layer) is BEiTAttention and layer.relative_position_bias_table is not None


def _is_pyramid(layer: nn.Module) -> bool:
    return type(layer) is Feature2Pyramid and len(layer.rescales) == 4


REPLACEMENTS: list[tuple[Callable[[nn.Module], bool], type[nn.Module]]] = [
    (_is_twofold_deconvolution, Deconvolution),
    (_is_beit_attention, FastBEiTAttention),
    (_is_pyramid, FastFeature2Pyramid),
]


def replace_layers(model: nn.Module) -> None:
    """Turn stock layers into ours, in place; parameters, buffers and hooks stay.

    `cae_seg.models.accelerate.switch` decides whether each then takes its fast path.
    """
    for layer in model.modules():
        for fits, ours in REPLACEMENTS:
            if fits(layer):
                layer.__class__ = ours

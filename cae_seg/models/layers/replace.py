"""Replace layers of a built model by ours, which have the same parameters and results."""

from collections.abc import Callable

from mmcv.cnn.bricks.transformer import MultiheadAttention
from mmseg.models.backbones.beit import BEiTAttention
from mmseg.models.necks import Feature2Pyramid
from torch import nn

from cae_seg.models.layers.attention import FastBEiTAttention, FastMultiheadAttention
from cae_seg.models.layers.pyramid import FastFeature2Pyramid
from cae_seg.models.ops.convolution import Deconvolution


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
        # mmcv's layer, whatever its subclass, takes the output of torch's alone.
        if isinstance(layer, MultiheadAttention) and type(layer.attn) is nn.MultiheadAttention:
            layer.attn.__class__ = FastMultiheadAttention

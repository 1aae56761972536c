"""mmsegmentation's UPerNet and FCN heads, deterministic and with fast paths.

Parameters and results are those of `UPerHead` and `FCNHead`. What differs is how the numbers come
about: pooling and resizing as matrix products, dropout per sample (`SampleDropout2d`), and the
paths of `cae_seg.models.accelerate`.
"""

from typing import Any

from mmcv.cnn import ConvModule
from mmseg.models.decode_heads import FCNHead, UPerHead
from mmseg.registry import MODELS
from torch import Tensor, nn

from cae_seg.models.heads.fast import FastHead
from cae_seg.models.ops.convolution import Unexpanded, conv1x1, conv3x3, conv3x3_of_concatenated
from cae_seg.models.ops.precision import product_dtype
from cae_seg.models.ops.residual import WithGradient, cast_copies
from cae_seg.models.ops.resize import pyramid_pool, resize_bilinear


class ConvTail(nn.Module):
    """What follows the convolution of an mmcv module: norm and activation."""

    def forward(self, module: ConvModule, x: Tensor) -> Tensor:
        """Finish the module's work on (N, C, h, w), which its kernel has been applied to."""
        if module.with_norm:
            x = module.norm(x)
        elif module.conv.bias is not None:
            x = x + module.conv.bias.view(-1, 1, 1)
        return module.activate(x) if module.with_activation else x


@MODELS.register_module()
class FastUPerHead(FastHead, UPerHead):
    """Unified perceptual parsing head (arXiv:1807.10221) over four maps.

    Takes maps (N, C_i, h_i, w_i), finest first; returns logits (N, classes, h_0, w_0). All maps but
    the last may be `Unexpanded`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.tail = ConvTail()

    def psp_forward(self, inputs: list[Tensor]) -> Tensor:
        """Return the coarsest map with pooled context: (N, channels, h, w)."""
        return self._pool_context(inputs, self._kernels(inputs[-1]))

    def _pool_context(self, inputs: list[Tensor], kernels: dict[ConvModule, Tensor]) -> Tensor:
        x = inputs[-1]
        pooled = pyramid_pool(x, self.psp_modules.pool_scales)
        context = [
            self.tail(conv, conv1x1(part, kernels[conv]))
            for (_, conv), part in zip(self.psp_modules, pooled, strict=True)
        ]
        return self._bottleneck(self.bottleneck, [x, *context], kernels)

    def _bottleneck(
        self, module: ConvModule, maps: list[Tensor], kernels: dict[ConvModule, Tensor]
    ) -> Tensor:
        mixed = conv3x3_of_concatenated(maps, kernels[module], self.fast_paths, self.align_corners)
        return self.tail(module, mixed)

    def _kernels(self, x: Tensor) -> dict[ConvModule, Tensor]:
        """Return each convolution's weight in the precision of products, cast by one kernel."""
        pooling = [conv for _, conv in self.psp_modules]
        modules = [*self.lateral_convs, *self.fpn_convs, *pooling]
        modules += [self.bottleneck, self.fpn_bottleneck]
        weights = [module.conv.weight for module in modules]
        if (dtype := product_dtype(x)) != weights[0].dtype:
            weights = WithGradient.apply(
                *weights, *cast_copies([[weight] for weight in weights], dtype)
            )
        return dict(zip(modules, weights, strict=True))

    def _mix(self, module: ConvModule, x: Tensor | Unexpanded, kernel: Tensor) -> Tensor:
        if isinstance(x, Tensor):
            return conv1x1(x, kernel)
        always = self.fast_paths["merged_laterals"] == "always"
        return x.conv1x1(module.conv.weight, kernel, always=always)

    def _forward_feature(self, inputs: list[Tensor | Unexpanded]) -> Tensor:
        inputs = self._transform_inputs(inputs)
        kernels = self._kernels(inputs[-1])
        laterals = [
            self.tail(conv, self._mix(conv, x, kernels[conv]))
            for conv, x in zip(self.lateral_convs, inputs[:-1], strict=True)
        ]
        laterals.append(self._pool_context(inputs, kernels))
        for finer in range(len(laterals) - 2, -1, -1):
            size = laterals[finer].shape[2:]
            resized = resize_bilinear(laterals[finer + 1], size, self.align_corners)
            laterals[finer] = laterals[finer] + resized
        outputs = [
            self.tail(conv, conv3x3(x, kernels[conv], self.fast_paths))
            for conv, x in zip(self.fpn_convs, laterals[:-1], strict=True)
        ]
        return self._bottleneck(self.fpn_bottleneck, [*outputs, laterals[-1]], kernels)


@MODELS.register_module()
class FastFCNHead(FastHead, FCNHead):
    """Convolutions on one map (N, C, h, w); returns logits (N, classes, h, w)."""

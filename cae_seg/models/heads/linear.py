"""The linear probe: batch norm and a 1×1 convolution."""

from collections.abc import Sequence
from typing import Any

from mmcv.cnn import build_norm_layer
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.registry import MODELS
from torch import Tensor

from cae_seg.models.heads.fast import FastHead


@MODELS.register_module()
class LinearHead(BaseDecodeHead):
    """Batch norm and a 1×1 convolution on one map, or on several that are concatenated.

    Several maps are resized to the first one's size. Returns logits (N, classes, h, w).

    Args:
        in_channels: channels of the map, or of each map.
        in_index: which of the backbone's maps; a sequence with a sequence of `in_channels`.
        norm_cfg: of the batch norm.
        dropout_ratio: of channels behind the batch norm, in training.
        kwargs: as mmsegmentation's `BaseDecodeHead`.
    """

    def __init__(
        self,
        in_channels: int | Sequence[int],
        in_index: int | Sequence[int] = -1,
        *,
        norm_cfg: dict | None = None,
        dropout_ratio: float = 0,
        **kwargs: Any,
    ) -> None:
        several = not isinstance(in_channels, int)
        super().__init__(
            list(in_channels) if several else in_channels,
            sum(in_channels) if several else in_channels,
            in_index=list(in_index) if several else in_index,
            input_transform="resize_concat" if several else None,
            dropout_ratio=dropout_ratio,
            norm_cfg=norm_cfg or {"type": "AnyDeviceSyncBN"},
            **kwargs,
        )
        self.bn = build_norm_layer(self.norm_cfg, self.channels)[1]

    def forward(self, inputs: list[Tensor]) -> Tensor:
        """Return the logits of the backbone's maps."""
        return self.cls_seg(self.bn(self._transform_inputs(inputs)))


@MODELS.register_module()
class FastLinearHead(FastHead, LinearHead):
    """`LinearHead` with the loss of `FastHead`."""

"""The heads of published SETR-MLA that mmsegmentation's differ from.

SETR-Naive and SETR-PUP are mmsegmentation's `SETRUPHead` with other arguments.
"""

from typing import Any

from mmseg.models.decode_heads import FCNHead, SETRMLAHead
from mmseg.registry import MODELS
from torch import nn


@MODELS.register_module()
class MLAHead(SETRMLAHead):
    """`SETRMLAHead` as published: a 3×3 classifier, and corners aligned inside the head only.

    Takes four maps (N, C, h, w); returns logits (N, classes, 4h, 4w), which are resized to the
    image with corners not aligned.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(align_corners=True, **kwargs)
        self.align_corners = False
        self.conv_seg = nn.Conv2d(self.channels, self.out_channels, 3, padding=1)


@MODELS.register_module()
class MLAAuxiliaryHead(FCNHead):
    """A 1×1 classifier without a bias on one map: (N, C, h, w) to (N, classes, h, w)."""

    def __init__(self, in_channels: int, **kwargs: Any) -> None:
        super().__init__(
            in_channels=in_channels,
            channels=in_channels,
            num_convs=0,
            concat_input=False,
            dropout_ratio=0,
            **kwargs,
        )
        self.conv_seg = nn.Conv2d(in_channels, self.out_channels, 1, bias=False)

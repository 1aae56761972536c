"""A backbone that is not trained."""

from collections.abc import Mapping
from typing import Any

import torch
from mmengine.model import BaseModule
from mmseg.registry import MODELS
from torch import Tensor

from cae_seg.models.pretrained.report import Report


@MODELS.register_module()
class Frozen(BaseModule):
    """Any backbone in eval mode, without gradients: neck and heads alone are trained.

    Args:
        backbone: config of the backbone.
        init_cfg: of the backbone, where its own config has none.
    """

    def __init__(self, backbone: Mapping[str, Any], init_cfg: dict | None = None) -> None:
        super().__init__()
        self.body = MODELS.build({"init_cfg": init_cfg, **backbone} if init_cfg else {**backbone})
        self.body.requires_grad_(False)

    @property
    def pretrained_report(self) -> Report | None:
        """What the backbone took from its checkpoint."""
        return getattr(self.body, "pretrained_report", None)

    def train(self, mode: bool = True) -> "Frozen":
        """Set the mode of everything but the backbone, which stays in eval mode."""
        super().train(mode)
        self.body.eval()
        return self

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the backbone's maps, detached."""
        with torch.no_grad():
            return tuple(self.body(x))

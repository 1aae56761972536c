"""mmsegmentation's Swin and ViT, filled from published checkpoints or refused."""

from typing import Any

from mmseg.models.backbones import SwinTransformer, VisionTransformer
from mmseg.registry import MODELS

from cae_seg.models.pretrained.architectures import MMSEG_VIT, SWIN
from cae_seg.models.pretrained.load import FilledFromCheckpoint


@MODELS.register_module()
class SwinBackbone(FilledFromCheckpoint, SwinTransformer):
    """mmsegmentation's `SwinTransformer`; loads official files of Swin without a conversion.

    Args: as `SwinTransformer`. Takes images (B, 3, H, W) of any size; returns the maps of the
    stages in `out_indices`, (B, C·2^i, ⌈H / 4·2^i⌉, …), each after a LayerNorm of its own.
    """

    architecture = SWIN


@MODELS.register_module()
class ViTBackbone(FilledFromCheckpoint, VisionTransformer):
    """mmsegmentation's `VisionTransformer`; loads timm's and DeiT's files without a conversion.

    Args: as `VisionTransformer`, but that the patch embedding has its bias by default: official
    files contain one, and mmsegmentation's default drops it. Takes images (B, 3, H, W); returns
    the blocks in `out_indices` as maps (B, C, ⌈H / patch⌉, ⌈W / patch⌉).
    """

    architecture = MMSEG_VIT

    def __init__(self, *args: Any, patch_bias: bool = True, **kwargs: Any) -> None:
        super().__init__(*args, patch_bias=patch_bias, **kwargs)

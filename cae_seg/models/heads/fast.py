"""A head whose loss makes no map of the labels' size with a class axis."""

from typing import Any

from mmseg.models.losses import CrossEntropyLoss
from torch import Tensor, nn

from cae_seg.models.accelerate import Switch, Switches, resolve
from cae_seg.models.layers.stochastic import SampleDropout2d
from cae_seg.models.ops.loss import upsampled_cross_entropy


class FastHead(nn.Module):
    """What our forms of mmsegmentation's heads share: fast paths, dropout per sample, the loss.

    Args:
        fast_paths: see `cae_seg.models.accelerate`.
        (others): as the mmsegmentation head.
    """

    def __init__(
        self, *args: Any, fast_paths: dict[str, Switch] | Switch | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.fast_paths: Switches = resolve(fast_paths)
        if self.dropout is not None:
            self.dropout = SampleDropout2d(self.dropout_ratio, self.channels)

    def loss_by_feat(self, seg_logits: Tensor, batch_data_samples: list) -> dict[str, Tensor]:
        """Return the loss and the pixel accuracy (percent) of logits (N, classes, h, w)."""
        if not _is_plain(self.loss_decode) or self.sampler is not None:
            return super().loss_by_feat(seg_logits, batch_data_samples)
        result = upsampled_cross_entropy(
            seg_logits,
            self._stack_batch_gt(batch_data_samples).squeeze(1),
            ignore_index=self.ignore_index,
            align_corners=self.align_corners,
            tiled=bool(self.fast_paths["fused_loss"]),
            progressive=bool(self.fast_paths["progressive_loss"]),
            weight=self.loss_decode.loss_weight,
        )
        # Named as in the published logs.
        return {
            "loss_seg": result.loss,
            "acc_seg": result.accuracy,
        }


def _is_plain(loss: nn.Module) -> bool:
    """Tell whether a loss is the recipe's: soft-max, no class weights, mean over all pixels."""
    return (
        type(loss) is CrossEntropyLoss
        and not (loss.use_sigmoid or loss.use_mask or loss.avg_non_ignore)
        and loss.class_weight is None
        and loss.reduction == "mean"
    )

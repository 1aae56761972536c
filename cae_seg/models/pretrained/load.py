"""Fill a backbone from a checkpoint file, in the constructor's own way: `init_cfg`."""

import logging
from pathlib import Path

from mmengine.dist import is_main_process
from torch import nn

from cae_seg.models.pretrained.architectures import Architecture
from cae_seg.models.pretrained.convert import convert
from cae_seg.models.pretrained.reading import load_checkpoint_file
from cae_seg.models.pretrained.report import Report

logger = logging.getLogger(__name__)


def load_pretrained(model: nn.Module, path: str | Path) -> Report:
    """Fill the backbone from a checkpoint file of any known layout.

    Raises:
        UserError: the file cannot be read safely, is of another architecture, or does not fill
            the backbone; the model is then unchanged.
    """
    model = getattr(model, "body", model)  # of a frozen backbone
    state, report = convert(load_checkpoint_file(path), model, source=str(path))
    model.load_state_dict(state, strict=False)
    return report


class FilledFromCheckpoint:
    """Mixin for backbones: `init_cfg=dict(type="Pretrained", checkpoint=…)` fills or raises.

    Put it before the backbone's class, whose own `init_weights` draws the start values that a
    checkpoint need not contain.
    """

    architecture: Architecture
    pretrained_report: Report | None = None

    def init_weights(self) -> None:
        """Draw start values, then load the checkpoint that `init_cfg` names, if any."""
        source = self.init_cfg
        if not source or source.get("type") != "Pretrained":
            super().init_weights()
            return
        self.init_cfg = None
        super().init_weights()
        self.init_cfg = source
        self.pretrained_report = load_pretrained(self, source["checkpoint"])
        self._is_init = True
        if is_main_process():
            logger.info("%s", self.pretrained_report.summary())

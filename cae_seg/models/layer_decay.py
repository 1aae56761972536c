"""Learning rates that fall from the head towards the first block of the backbone."""

import logging
import re

from mmengine.optim import DefaultOptimWrapperConstructor
from mmseg.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn

logger = logging.getLogger(__name__)

# What the backbone computes before its first block. A shared position table counts as published:
# it lies outside the blocks and keeps the rate of the head.
EMBEDDINGS = ("backbone.cls_token", "backbone.pos_embed", "backbone.patch_embed.")
BLOCK = re.compile(r"backbone\.blocks\.(\d+)\.")


def layer_id(name: str, layers: int) -> int:
    """Return 0 for the embeddings, i + 1 for block i, layers + 1 for pyramid and heads."""
    if name.startswith(EMBEDDINGS):
        return 0
    block = BLOCK.match(name)
    return int(block[1]) + 1 if block else layers + 1


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class CAELayerDecay(DefaultOptimWrapperConstructor):
    """Build the optimiser with learning rate × decay^(layers + 1 − layer id).

    Biases and one-dimensional parameters have no weight decay; all others do, the class token and
    the relative position tables included, as in the published runs. Parameters of one layer and
    one kind of decay form one group; frozen ones are left out.

    The number of layers is the backbone's. `paramwise_cfg` has one key:
        layer_decay_rate: factor per layer in (0, 1]; published 0.65 (base), 0.95 (large).
    """

    def _validate_cfg(self) -> None:
        keys = set(self.paramwise_cfg)
        if keys != {"layer_decay_rate"}:
            raise ValueError(f"paramwise_cfg: has {sorted(keys)}, takes layer_decay_rate alone")
        rate = self.paramwise_cfg["layer_decay_rate"]
        if not 0 < rate <= 1:
            raise ValueError(f"layer_decay_rate: {rate} is not in (0, 1]")
        if self.base_lr is None or self.base_wd is None:
            raise ValueError("optimizer: needs lr and weight_decay")

    def add_params(self, params: list[dict], module: nn.Module, **kwargs) -> None:
        """Append the parameter groups of a segmentor to `params`."""
        layers = len(module.backbone.blocks)
        rate = self.paramwise_cfg["layer_decay_rate"]
        groups: dict[str, dict] = {}
        for name, parameter in module.named_parameters():
            if not parameter.requires_grad:
                continue
            layer = layer_id(name, layers)
            decays = parameter.dim() > 1 and not name.endswith(".bias")
            group = f"layer_{layer}_{'decay' if decays else 'no_decay'}"
            if group not in groups:
                scale = rate ** (layers + 1 - layer)
                groups[group] = {
                    "params": [],
                    "param_names": [],
                    "group_name": group,
                    "lr": scale * self.base_lr,
                    "lr_scale": scale,
                    "weight_decay": self.base_wd if decays else 0.0,
                }
            groups[group]["params"].append(parameter)
            groups[group]["param_names"].append(name)
        logger.info("%d parameter groups, layer decay %s over %d blocks", len(groups), rate, layers)
        params.extend(groups.values())

"""Learning rates that fall from the head towards the first layer of the backbone."""

import logging
import re

from mmengine.optim import DefaultOptimWrapperConstructor
from mmseg.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn

from cae_seg.errors import UserError

logger = logging.getLogger(__name__)

# What a vision transformer computes before its first block. A shared position table counts as
# published: it is outside the blocks and keeps the rate of the head.
EMBEDDINGS = ("backbone.cls_token", "backbone.pos_embed", "backbone.patch_embed.")
BLOCK = re.compile(r"backbone\.(?:blocks|layers)\.(\d+)\.")


def layer_id(name: str, layers: int) -> int:
    """Return 0 for the embeddings, i + 1 for block i, layers + 1 for pyramid and heads."""
    if name.startswith(EMBEDDINGS):
        return 0
    block = BLOCK.match(name)
    return int(block[1]) + 1 if block else layers + 1


def layer_ids(model: nn.Module, layers: int | None = None) -> tuple[dict[str, int], int]:
    """Return the layer of each parameter of a segmentor, and that of the heads, the highest.

    Layers are those of the backbone's `layer_ids()` where it has the method, else its `blocks` or
    `layers`; with a frozen backbone there is one layer, that of the heads.

    Args:
        model: segmentor with a `backbone`.
        layers: number of blocks; the backbone's where None.

    Raises:
        UserError: the backbone has no layers to tell apart.
    """
    names = [name for name, _ in model.named_parameters()]
    if not any(parameter.requires_grad for parameter in model.backbone.parameters()):
        return dict.fromkeys(names, 1), 1
    if hasattr(model.backbone, "layer_ids"):
        own = {f"backbone.{name}": layer for name, layer in model.backbone.layer_ids().items()}
        top = max(own.values()) + 1
        return {name: own.get(name, top) for name in names}, top
    blocks = getattr(model.backbone, "blocks", getattr(model.backbone, "layers", None))
    if layers is None and blocks is None:
        raise UserError(
            f"optim_wrapper.constructor: {type(model.backbone).__name__} has neither layer_ids() "
            "nor blocks; take a config without a decay of learning rates by layer"
        )
    layers = len(blocks) if layers is None else layers
    return {name: layer_id(name, layers) for name in names}, layers + 1


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class CAELayerDecay(DefaultOptimWrapperConstructor):
    """Build the optimiser with learning rate × decay^(layer of the heads − layer).

    Biases and one-dimensional parameters have no weight decay; all others do, the class token and
    the relative position tables included, as in the published runs. Parameters of one layer and
    one kind of decay form one group; frozen ones are left out.

    Keys of `paramwise_cfg`:
        layer_decay_rate: factor per layer in (0, 1]; published 0.65 (base), 0.95 (large).
        num_layers: number of blocks, optional; the backbone's where it is missing.
    """

    def _validate_cfg(self) -> None:
        keys = set(self.paramwise_cfg)
        if not {"layer_decay_rate"} <= keys <= {"layer_decay_rate", "num_layers"}:
            raise ValueError(
                f"paramwise_cfg: has {sorted(keys)}, takes layer_decay_rate and, optionally, "
                "num_layers"
            )
        rate = self.paramwise_cfg["layer_decay_rate"]
        if not 0 < rate <= 1:
            raise ValueError(f"layer_decay_rate: {rate} is not in (0, 1]")
        if self.base_lr is None or self.base_wd is None:
            raise ValueError("optimizer: needs lr and weight_decay")

    def add_params(self, params: list[dict], module: nn.Module, **kwargs) -> None:
        """Append the parameter groups of a segmentor to `params`."""
        rate = self.paramwise_cfg["layer_decay_rate"]
        ids, top = layer_ids(module, self.paramwise_cfg.get("num_layers"))
        groups: dict[str, dict] = {}
        for name, parameter in module.named_parameters():
            if not parameter.requires_grad:
                continue
            layer = ids[name]
            decays = parameter.dim() > 1 and not name.endswith(".bias")
            group = f"layer_{layer}_{'decay' if decays else 'no_decay'}"
            if group not in groups:
                scale = rate ** (top - layer)
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
        logger.info("%d parameter groups, layer decay %s over %d layers", len(groups), rate, top)
        params.extend(groups.values())

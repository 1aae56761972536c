"""From a config to its model, with one-line errors for what cannot be built."""

import copy
import difflib
import logging
import random
from typing import Any

import numpy as np
import torch
from mmengine.config import Config, ConfigDict
from mmengine.dist import is_main_process
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from cae_seg.errors import UserError
from cae_seg.models.accelerate import resolve, switch
from cae_seg.models.layers.batch_norm import adapt_batch_norm
from cae_seg.models.pretrained.compatibility import normalisation_warnings

logger = logging.getLogger(__name__)


def build_model(config: Config, seed: int, *, start: bool) -> nn.Module:
    """Build the segmentor on the CPU, its random start values drawn from `seed` in one go.

    Args:
        config: job applied; unless it is accelerated, our layers work as stock ones do.
        seed: of the run.
        start: whether to draw start values and load the pretrained checkpoint; not needed where
            all weights are loaded afterwards.

    Raises:
        UserError: unknown type names, arguments that do not fit, or a checkpoint that does not.
    """
    seed_all(seed)
    node = copy.deepcopy(config.model)
    if config.get("data_preprocessor") is not None:
        node.setdefault("data_preprocessor", copy.deepcopy(config.data_preprocessor))
    model = build_part(config, node if start else without_start_values(node))
    if start and hasattr(model, "init_weights"):
        model.init_weights()
        _warn_of_normalisation(model)
    switch(model, resolve(config.get("fast_paths", False)))
    return adapt_batch_norm(model)


def _warn_of_normalisation(model: nn.Module) -> None:
    report = getattr(getattr(model, "backbone", None), "pretrained_report", None)
    mean = getattr(getattr(model, "data_preprocessor", None), "mean", None)
    if report is not None and mean is not None and is_main_process():
        for warning in normalisation_warnings(report.mean, mean.flatten().tolist()):
            logger.warning("checkpoint %s: %s", report.source, warning)


def build_backbone(config: Config) -> nn.Module:
    """Build the backbone alone, without its checkpoint.

    Raises:
        UserError: as `build_model`.
    """
    return build_part(config, without_start_values(config.model.backbone))


def build_part(config: Config, node: ConfigDict) -> nn.Module:
    """Build one node of a config.

    Raises:
        UserError: it cannot be built.
    """
    init_default_scope(config.get("default_scope") or "mmseg")
    try:
        return MODELS.build(node)
    except UserError:
        raise
    except KeyError as error:
        raise UserError(_unknown_type(config, error)) from error
    except (TypeError, ValueError, AssertionError, AttributeError, ImportError) as error:
        raise UserError(_unbuildable(config, error)) from error


def without_start_values(node: Any) -> Any:
    """Copy a config node without the checkpoints that its parts would start from."""
    if isinstance(node, dict):
        copied = {key: without_start_values(value) for key, value in node.items()}
        if _is_checkpoint(copied.get("init_cfg")):
            copied["init_cfg"] = None
        if isinstance(copied.get("pretrained"), str):
            copied["pretrained"] = None
        return ConfigDict(copied)
    if isinstance(node, list | tuple):
        return type(node)(without_start_values(value) for value in node)
    return node


def seed_all(seed: int) -> None:
    """Seed Python's, NumPy's and torch's global generators."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def _is_checkpoint(value: Any) -> bool:
    return isinstance(value, dict) and value.get("type") == "Pretrained"


def _unknown_type(config: Config, error: KeyError) -> str:
    wanted = config.model.get("type"), (config.model.get("backbone") or {}).get("type")
    registries = (MODELS, *MODELS.children.values())
    known = sorted(name for registry in registries for name in registry.module_dict)
    for name in wanted:
        if name is not None and str(name).split(".")[-1] not in known:
            near = ", ".join(difflib.get_close_matches(str(name), known, n=3)) or "CAE"
            return f"{config.filename}: no model or backbone named {name}; nearest: {near}"
    return _unbuildable(config, error)


def _unbuildable(config: Config, error: Exception) -> str:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return f"{config.filename}: the model cannot be built ({reason}); correct the config"

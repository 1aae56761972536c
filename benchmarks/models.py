"""The two sides: stock mmsegmentation and ours, with the same weights."""

import copy
import types
from typing import Any

import torch
from mmcv.cnn.bricks import DropPath
from mmengine.config import Config
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.registry import init_default_scope
from mmseg.models.backbones.beit import BEiTAttention
from mmseg.registry import MODELS
from torch import nn

import cae_seg.registration  # noqa: F401
from benchmarks.suite import ROOT
from cae_seg.config_files import ZOO_PREFIX
from cae_seg.engine.acceleration import accelerate
from cae_seg.engine.build import build_model
from cae_seg.engine.config import load_config as read_config
from cae_seg.models.backbones.cae import CAE, CAEAttention
from cae_seg.models.layers.stochastic import SampleDropout2d, SampleDropPath

CONFIGS = ROOT / "configs_local" / "cae" / "upernet"
BASE = "upernet_cae_base_12_512_slide_160k_ade20k_pt_1e-4"
LARGE = "upernet_cae_large_24_512_slide_160k_ade20k_pt_decay095_4e-5_dp015"
TINY = "upernet_cae_tiny_demo"


def load_config(stem: str) -> Config:
    """Read a shipped config, or one of mmsegmentation's zoo (`mmseg::…`)."""
    init_default_scope("mmseg")
    if stem.startswith(ZOO_PREFIX):
        return read_config(stem)
    return Config.fromfile(CONFIGS / f"{stem}.py")


def build_ours(config: Config, device: str) -> nn.Module:
    """Build our segmentor with random weights that make clear predictions."""
    config = copy.deepcopy(config)
    accelerate(config)
    model = build_model(config, 0, start=False)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("relative_position_bias_table"):
                parameter.normal_(0, 0.5, generator=generator)
            if name.endswith("conv_seg.weight"):
                # At the usual start all classes are nearly equal, and any rounding decides.
                parameter.normal_(0, 0.3, generator=generator)
    return model.to(device)


def build_stock(config: Config, ours: nn.Module, *, weights: bool = True) -> nn.Module:
    """Build mmsegmentation's segmentor around a copy of our backbone's layers and weights.

    mmsegmentation has no CAE; its BEiT lacks the position embedding. So CAE's blocks are ours, but
    attention is BEiT's own code, and the taps are laid out as the published backbone lays them out.
    Of other configs everything is mmsegmentation's.
    """
    device = next(ours.parameters()).device
    model = MODELS.build(_stock_config(config))
    if weights:
        model.load_state_dict(ours.state_dict(), strict=True)
    for module in model.modules():
        if hasattr(module, "fast_path"):
            module.fast = False
        if isinstance(module, CAEAttention):
            module.bias = "qv_bias"
            module.forward = types.MethodType(_beit_attention, module)
    if isinstance(model.backbone, CAE):
        taps = model.backbone._taps
        model.backbone._taps = lambda x, indices: {
            i: tap.contiguous() for i, tap in taps(x, indices).items()
        }
    return model.to(device) if weights else model


def _beit_attention(
    self: CAEAttention, x: torch.Tensor, shared_rel_pos_bias: None = None
) -> torch.Tensor:
    return BEiTAttention.forward(self, x)


def _stock_config(config: Config) -> dict[str, Any]:
    stock = copy.deepcopy(config.model)
    # SyncBN of one process is BN, and exists on CUDA only.
    stock.decode_head.norm_cfg = stock.auxiliary_head.norm_cfg = {"type": "BN"}
    return stock


def build_optimizer(config: Config, model: nn.Module, device: str, *, stock: bool) -> OptimWrapper:
    """Build the recipe's optimiser; the stock one as torch gives it, mixed precision on CUDA."""
    wrapper = copy.deepcopy(config.optim_wrapper)
    wrapper.optimizer.type = "AdamW" if stock else "FastAdamW"
    wrapper.optimizer.fused = not stock
    if device == "cuda":
        wrapper.update(type="AmpOptimWrapper", dtype="float16", loss_scale="dynamic")
    return build_optim_wrapper(model, wrapper)


def without_dropout(model: nn.Module) -> None:
    """Switch the randomness of training off, to compare losses and gradients."""
    for module in model.modules():
        if isinstance(module, SampleDropPath | SampleDropout2d | DropPath):
            module.drop_prob = 0.0
        elif isinstance(module, nn.Dropout2d | nn.Dropout):
            module.p = 0.0


def build_empty(config: Config, side: str) -> nn.Module:
    """Build a side, "stock" or "ours", without memory for its weights (device "meta")."""
    with torch.device("meta"):
        accelerated = copy.deepcopy(config)
        accelerate(accelerated)
        ours = build_model(accelerated, 0, start=False)
        return ours if side == "ours" else build_stock(config, ours, weights=False)

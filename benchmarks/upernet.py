"""Cases: UperNet over other backbones, as mmsegmentation's zoo has them.

What is faster by itself is replaced in any config; these are configs that know nothing of us.
"""

from typing import Any

import torch
from mmengine.config import Config
from mmseg.structures import SegDataSample
from torch import Tensor, nn

from benchmarks.evaluation import PLAIN, measure_evaluation
from benchmarks.models import build_ours, build_stock, load_config, without_dropout
from benchmarks.suite import Options, case
from benchmarks.training import make_batch, time_steps

IMAGES = 2  # of a training step
ZOO = {
    "Swin-T": "swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py",
    "BEiT-B": "beit/beit-base_upernet_8xb2-160k_ade20k-640x640.py",
    "DeiT-B": "vit/vit_deit-b16_upernet_8xb2-160k_ade20k-512x512.py",
}


def _configs(options: Options) -> dict[str, Config]:
    names = list(ZOO)[:1] if options.quick else list(ZOO)
    found = {name: load_config(f"mmseg::{ZOO[name]}") for name in names}
    if options.quick:
        for config in found.values():
            config.crop_size = (64, 64)
            config.model.data_preprocessor.size = config.crop_size
            for step in config.val_dataloader.dataset.pipeline:
                if step.type == "Resize":
                    step.scale = (256, 64)
    return found


@case("upernet_evaluation")
def upernet_evaluation(options: Options) -> list[dict[str, Any]]:
    """Measure the evaluation of images of the commonest shape, in fp32."""
    return [
        measure_evaluation(f"UperNet {name}, 512 × 683, fp32", config, PLAIN, 1.5, "fp32", options)
        for name, config in _configs(options).items()
    ]


@case("upernet_training_step")
def upernet_training_step(options: Options) -> list[dict[str, Any]]:
    """Measure a training step."""
    return [_step(name, config, options) for name, config in _configs(options).items()]


def _step(name: str, config: Config, options: Options) -> dict[str, Any]:
    ours = build_ours(config, options.device).train()
    sides = {"stock": build_stock(config, ours).train(), "ours": ours}
    batch = make_batch(config, IMAGES, options.device)
    _, result = time_steps(config, sides, batch, options)
    # Last: without dropout, and both sides with the same weights again.
    sides["stock"].load_state_dict(ours.state_dict())
    return {
        "what": f"UperNet {name}, batch {IMAGES}",
        "target": 1.3,
        "agreement": _agreement(sides, batch),
        **result,
    }


def _agreement(sides: dict[str, nn.Module], batch: tuple[Tensor, list[SegDataSample]]) -> str:
    """Compare the losses and the gradients of both sides, randomness off."""
    losses, gradients = {}, {}
    for side, model in sides.items():
        without_dropout(model)
        model.zero_grad()
        loss, _ = model.parse_losses(model.loss(*batch))
        loss.backward()
        losses[side] = loss.item()
        gradients[side] = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    far = torch.tensor(
        [
            float((gradients["ours"][n] - g).norm() / g.norm().clamp_min(1e-30))
            for n, g in gradients["stock"].items()
        ]
    )
    return (
        f"loss differs by {abs(losses['ours'] / losses['stock'] - 1):.0e} of stock's, "
        f"gradients by {far.median():.0e} (median), {far.quantile(0.95):.0e} (95 %)"
    )

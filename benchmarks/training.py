"""Case 1: one step of training, from a batch on the device to updated weights."""

import copy
from collections.abc import Callable
from typing import Any

import psutil
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.memory import peak_bytes
from benchmarks.models import (
    BASE,
    LARGE,
    TINY,
    build_optimizer,
    build_ours,
    build_stock,
    load_config,
    without_dropout,
)
from benchmarks.suite import Options, case
from benchmarks.turns import alternate, timed
from cae_seg.models.layers.stochastic import set_randomness

# name, config, images, target, gigabytes that it needs
SIZES = {
    "cpu": [
        ("ViT-B", BASE, 2, 2.3, 12),
        ("ViT-L", LARGE, 2, None, 28),
        ("ViT-B", BASE, 16, None, 56),
        ("ViT-L", LARGE, 16, None, 120),
    ],
    "cuda": [
        ("ViT-B", BASE, 2, 2.2, 0),
        ("ViT-B", BASE, 16, 2.2, 0),
        ("ViT-L", LARGE, 2, 2.2, 0),
        ("ViT-L", LARGE, 16, 2.2, 0),
    ],
}


@case("training_step")
def training_step(options: Options) -> list[dict[str, Any]]:
    """Measure each size that fits this machine."""
    if options.quick:
        return [_measure("tiny", TINY, 2, None, options)]
    sizes = SIZES[options.device]
    return [_measure(*size, options) for *size, gigabytes in sizes if gigabytes <= _memory_gb()]


def _memory_gb() -> float:
    return psutil.virtual_memory().available / 2**30


def _measure(
    name: str, stem: str, images: int, target: float | None, options: Options
) -> dict[str, Any]:
    config = load_config(stem)
    ours = build_ours(config, options.device).train()
    stock = build_stock(config, ours).train()
    batch = make_batch(config, images, options.device)
    agreement = _agreement(config, ours, batch, options.device)
    sides = {"stock": stock, "ours": ours}
    steps, result = time_steps(config, sides, batch, options)
    operations = operations_of(steps["stock"])
    rate = _matrix_rate(options.device)
    row = {"what": f"{name}, batch {images}", "target": target, "agreement": agreement, **result}
    for side in sides:
        kept = kept_bytes(sides[side])
        row[f"{side}_images_per_second"] = images / result[side]
        row[f"{side}_peak_gb"] = (kept + peak_bytes(steps[side], options.device)) / 2**30
        row[f"{side}_fraction_of_matrix_rate"] = operations / result[side] / rate
    row["peak_ratio"] = row["ours_peak_gb"] / row["stock_peak_gb"]
    row["matrix_rate_tflops"] = rate / 1e12
    row["published_operations_tflop"] = operations / 1e12
    return row


def make_batch(config: Config, images: int, device: str) -> tuple[Tensor, list[SegDataSample]]:
    """Make normalised images of smooth patches, and labels in blocks, a tenth of them ignored.

    Images of white noise would all look alike to the network, and batch norm blow up what little
    tells them apart, rounding included.
    """
    side = config.crop_size[0]
    generator = torch.Generator().manual_seed(2)
    coarse = torch.randn(images, 3, 8, 8, generator=generator) + torch.randn(
        images, 3, 1, 1, generator=generator
    )
    x = F.interpolate(coarse, (side, side), mode="bicubic").to(device)
    blocks = torch.randint(0, 150, (images, 1, side // 16, side // 16), generator=generator)
    blocks[torch.rand(blocks.shape, generator=generator) < 0.1] = 255
    labels = blocks.repeat_interleave(16, -1).repeat_interleave(16, -2).to(device)
    return x, [SegDataSample(gt_sem_seg=PixelData(data=label)) for label in labels]


def time_steps(
    config: Config, sides: dict[str, nn.Module], batch: dict[str, Any], options: Options
) -> tuple[dict[str, Callable[[], Any]], dict[str, Any]]:
    """Time a training step of both sides in turns; return the steps, and what `alternate` says."""
    steps = {
        side: step_of(
            model, build_optimizer(config, model, options.device, stock=side == "stock"), batch
        )
        for side, model in sides.items()
    }
    on_cpu = options.device == "cpu"
    result = alternate(
        **steps,
        rounds=options.rounds,
        warmup=0 if on_cpu else 2,
        settle=steps if on_cpu else None,
    )
    return steps, result


def step_of(
    model: nn.Module, optimizer: OptimWrapper, batch: tuple[Tensor, list[SegDataSample]]
) -> Callable[[], None]:
    """Return one training step on a fixed batch."""
    images, samples = batch

    def step() -> None:
        set_randomness(
            model, seed=0, iteration=0, first_sample=0, samples=len(images), total=len(images)
        )
        with optimizer.optim_context(model):
            losses = model.loss(images, samples)
        loss, _ = model.parse_losses(losses)
        optimizer.update_params(loss)

    return step


def kept_bytes(model: nn.Module) -> int:
    """Return what training keeps between steps: weights, buffers, two moments, in bytes."""
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    every = [*model.parameters(), *model.buffers()]
    return sum(t.numel() * t.element_size() for t in every) + 2 * trained


def operations_of(step: Callable[[], None]) -> int:
    """Count the operations of matrix products and convolutions in a step; multiply-add is two."""
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def _matrix_rate(device: str) -> float:
    """Return the measured rate of a large square matrix product, in operations per second.

    float32 on the CPU, bfloat16 on CUDA. A multiply-add counts as two operations.
    """
    size = 8192 if device == "cuda" else 3072
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(a)
    best = min(timed(lambda: torch.mm(a, b, out=out)).clock for _ in range(10))
    return 2 * size**3 / best


def _agreement(
    config: Config, ours: nn.Module, batch: tuple[Tensor, list[SegDataSample]], device: str
) -> str:
    """Compare losses and gradients, randomness off, with those of stock in double precision.

    How far single precision is from the truth depends on the network, not on who computes it, so
    stock's own distance is told as well. On CUDA both sides compute in half precision.
    """
    loss, truth = _gradients(_judge(config, ours), batch)
    differences = []
    for side in ("stock", "ours"):
        model = build_ours(config, device) if side == "ours" else build_stock(config, ours)
        side_loss, gradients = _gradients(model, batch)
        far = sorted(
            ((gradients[n].double() - g).norm() / g.norm().clamp_min(1e-30)).item()
            for n, g in truth.items()
        )
        differences.append(
            f"{side} {abs(side_loss / loss - 1):.0e}, {far[len(far) // 2]:.0e} (median), "
            f"{far[int(len(far) * 0.95)]:.0e} (95 %)"
        )
        del model, gradients
    return f"loss and gradients from double precision: {'; '.join(differences)}"


def _judge(config: Config, ours: nn.Module) -> nn.Module:
    """Build the stock side in double precision, with checkpoints to halve its memory."""
    config = copy.deepcopy(config)
    config.model.backbone.use_checkpoint = True
    return build_stock(config, ours).double()


def _gradients(
    model: nn.Module, batch: tuple[Tensor, list[SegDataSample]]
) -> tuple[float, dict[str, Tensor]]:
    """Return the loss and the gradient of every parameter that has one."""
    images, samples = batch
    dtype = next(model.parameters()).dtype
    half = images.is_cuda and dtype == torch.float32
    without_dropout(model)
    model.train()
    with torch.autocast(images.device.type, torch.float16, enabled=half):
        losses = model.loss(images.to(dtype), samples)
    loss = sum(value for name, value in losses.items() if "loss" in name)
    scale = 65536.0 if half else 1.0
    (loss * scale).backward()
    return loss.item(), {
        name: parameter.grad / scale
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }

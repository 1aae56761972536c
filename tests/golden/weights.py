"""Random weights and inputs of the reference runs, made again from their seeds, bit for bit.

The reference numbers next to this file were produced by the published code on random weights. Those
weights are a pure function of a seed and of the parameter shapes, so they are drawn here instead of
stored: one `torch.randn` a tensor, in the published order of the state dict, scaled by its role.

    >>> sd = weights.tiny_strong()                 # backbone of golden_tiny_strong
    >>> sd = weights.slide()                       # segmentor of golden_slide
    >>> sd = weights.train(); batches = weights.train_batches()
"""

from collections.abc import Callable, Iterator

import torch

Shapes = Iterator[tuple[str, tuple[int, ...]]]
Scale = Callable[[str, torch.Tensor], torch.Tensor]

DIM, DEPTH, HEADS, GRID, CHANNELS, CLASSES = 64, 4, 4, 4, 32, 150
BUFFERS = ("relative_position_index", "num_batches_tracked")


def backbone_shapes() -> Shapes:
    """Floating-point tensors of the tiny backbone, in the published order."""
    yield "cls_token", (1, 1, DIM)
    yield "pos_embed", (1, GRID**2 + 1, DIM)
    yield "patch_embed.proj.weight", (DIM, 3, 16, 16)
    yield "patch_embed.proj.bias", (DIM,)
    for i in range(DEPTH):
        yield from _block_shapes(f"blocks.{i}")
    yield "fpn1.0.weight", (DIM, DIM, 2, 2)
    yield "fpn1.0.bias", (DIM,)
    yield from _norm_shapes("fpn1.1", DIM)
    for layer in ("fpn1.3", "fpn2.0"):
        yield f"{layer}.weight", (DIM, DIM, 2, 2)
        yield f"{layer}.bias", (DIM,)


def _block_shapes(block: str) -> Shapes:
    yield f"{block}.gamma_1", (DIM,)
    yield f"{block}.gamma_2", (DIM,)
    yield f"{block}.norm1.weight", (DIM,)
    yield f"{block}.norm1.bias", (DIM,)
    yield f"{block}.attn.q_bias", (DIM,)
    yield f"{block}.attn.v_bias", (DIM,)
    yield f"{block}.attn.relative_position_bias_table", ((2 * GRID - 1) ** 2 + 3, HEADS)
    yield f"{block}.attn.qkv.weight", (3 * DIM, DIM)
    yield f"{block}.attn.proj.weight", (DIM, DIM)
    yield f"{block}.attn.proj.bias", (DIM,)
    yield f"{block}.norm2.weight", (DIM,)
    yield f"{block}.norm2.bias", (DIM,)
    yield f"{block}.mlp.fc1.weight", (4 * DIM, DIM)
    yield f"{block}.mlp.fc1.bias", (4 * DIM,)
    yield f"{block}.mlp.fc2.weight", (DIM, 4 * DIM)
    yield f"{block}.mlp.fc2.bias", (DIM,)


def _norm_shapes(norm: str, channels: int) -> Shapes:
    for name in ("weight", "bias", "running_mean", "running_var"):
        yield f"{norm}.{name}", (channels,)


def _conv_shapes(layer: str, inputs: int, kernel: int) -> Shapes:
    yield f"{layer}.conv.weight", (CHANNELS, inputs, kernel, kernel)
    yield from _norm_shapes(f"{layer}.bn", CHANNELS)


def segmentor_shapes() -> Shapes:
    """Floating-point tensors of the tiny segmentor: backbone, decode head, auxiliary head."""
    yield from ((f"backbone.{name}", shape) for name, shape in backbone_shapes())
    for head in ("decode_head", "auxiliary_head"):
        yield f"{head}.conv_seg.weight", (CLASSES, CHANNELS, 1, 1)
        yield f"{head}.conv_seg.bias", (CLASSES,)
        if head == "auxiliary_head":
            yield from _conv_shapes(f"{head}.convs.0", DIM, 3)
            continue
        for i in range(4):
            yield from _conv_shapes(f"{head}.psp_modules.{i}.1", DIM, 1)
        yield from _conv_shapes(f"{head}.bottleneck", DIM + 4 * CHANNELS, 3)
        for i in range(3):
            yield from _conv_shapes(f"{head}.lateral_convs.{i}", DIM, 1)
        for i in range(3):
            yield from _conv_shapes(f"{head}.fpn_convs.{i}", CHANNELS, 3)
        yield from _conv_shapes(f"{head}.fpn_bottleneck", 4 * CHANNELS, 3)


def _plain(name: str, noise: torch.Tensor) -> torch.Tensor:
    if name.endswith("running_var"):
        return noise.abs() * 0.05 + 1
    return noise * 0.05


def _strong(name: str, noise: torch.Tensor) -> torch.Tensor:
    """Scale so that every path of the network carries signal, attention above all."""
    if name.endswith("running_var"):
        return noise.abs() + 0.5
    if name.endswith("running_mean"):
        return noise * 0.3
    if "gamma_" in name:
        return noise * 0.1 + 0.5
    if name.endswith(("cls_token", "pos_embed")):
        return noise * 0.5
    if name.endswith("relative_position_bias_table"):
        return noise
    if name.endswith("conv_seg.weight"):
        return noise * 0.3
    if noise.dim() > 1:
        return noise * (1.5 / noise[0].numel()) ** 0.5
    if name.endswith("weight"):
        return noise * 0.2 + 1
    return noise * 0.2


def draw(shapes: Shapes, seed: int, scale: Scale) -> dict[str, torch.Tensor]:
    """Return name → tensor, drawn one after the other from one generator."""
    generator = torch.Generator().manual_seed(seed)
    return {name: scale(name, torch.randn(shape, generator=generator)) for name, shape in shapes}


def tiny() -> dict[str, torch.Tensor]:
    """Backbone parameters of golden_tiny."""
    return draw(backbone_shapes(), 0, _plain)


def tiny_strong() -> dict[str, torch.Tensor]:
    """Backbone parameters of golden_tiny_strong."""
    return draw(backbone_shapes(), 1, _strong)


def slide() -> dict[str, torch.Tensor]:
    """Segmentor parameters of golden_slide."""
    return draw(segmentor_shapes(), 5, _strong)


def train() -> dict[str, torch.Tensor]:
    """Segmentor parameters at the start of golden_train: batch statistics reset after drawing."""
    sd = draw(segmentor_shapes(), 11, _strong)
    for name, tensor in sd.items():
        if name.endswith("running_mean"):
            tensor.zero_()
        elif name.endswith("running_var"):
            tensor.fill_(1)
    return sd


def noise(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """Standard normal numbers from a fresh generator."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def tiny_input() -> torch.Tensor:
    """Images of golden_tiny and golden_tiny_strong, 2×3×64×64."""
    return noise((2, 3, 64, 64), 100)


def tiny_output_weights() -> list[torch.Tensor]:
    """Weights of the scalar sum(out_i · w_i) whose gradients golden_tiny* hold."""
    return [noise((2, DIM, side, side), 200 + i) for i, side in enumerate((16, 8, 4, 2))]


def slide_input() -> torch.Tensor:
    """The image of golden_slide, 1×3×100×150."""
    return noise((1, 3, 100, 150), 6)


def train_batches() -> tuple[torch.Tensor, torch.Tensor]:
    """Ten batches of golden_train: images 10×2×3×64×64, labels 10×2×1×64×64 (255 is ignored)."""
    generator = torch.Generator().manual_seed(12)
    images = torch.randn((10, 2, 3, 64, 64), generator=generator)
    blocks = torch.randint(0, CLASSES, (10, 2, 1, 8, 8), generator=generator)
    labels = blocks.repeat_interleave(8, dim=-2).repeat_interleave(8, dim=-1)
    labels[torch.rand(labels.shape, generator=generator) < 0.1] = 255
    return images, labels

"""The demo's checkpoints: in the layouts of released CAE and Swin files, but not pretrained.

`cae_tiny_300e.pth` holds random weights, `cae_tiny_1600e.pth` the same with the principal
components of the images' patches as its patch embedding, which is a better start; so has
`swin_demo.pth`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cae_seg.files import atomic_writer
from cae_seg.project import PROJECT

CAE_CONFIG = PROJECT / "configs_local/cae/upernet/upernet_cae_tiny_demo.py"
SWIN_CONFIG = PROJECT / "configs_local/swin/upernet_swin_demo.py"
MEAN, STD = np.array([123.675, 116.28, 103.53]), np.array([58.395, 57.12, 57.375])
PATCHES = 4096

Weights = Mapping[str, np.ndarray]


def write_checkpoints(folder: Path, images: Sequence[np.ndarray], seed: int) -> None:
    """Write the checkpoints into a folder; the same bytes for one seed.

    Args:
        folder: where to write `cae_tiny_300e.pth`, `cae_tiny_1600e.pth` and `swin_demo.pth`.
        images: (H, W, 3) uint8 RGB, whose patches make the patch embeddings.
        seed: what the weights are drawn from.

    Raises:
        UserError: the folder cannot be written.
    """
    from mmengine.config import Config

    cae = Config.fromfile(CAE_CONFIG).model.backbone
    plain = _random_cae(cae, seed)
    filters = _patch_filters(cae.embed_dim, cae.patch_size, images, seed)
    better = plain | {"patch_embed.proj.weight": filters}
    for epochs, encoder in ((300, plain), (1600, better)):
        released = {f"encoder.{key}": value for key, value in encoder.items()}
        released |= {
            "mask_token": np.zeros((1, 1, cae.embed_dim), np.float32),
            "pretext_neck.norm.weight": np.ones(cae.embed_dim, np.float32),
            "pretext_neck.norm.bias": np.zeros(cae.embed_dim, np.float32),
        }
        _write(folder / f"cae_tiny_{epochs}e.pth", released, epoch=epochs - 1)
    swin = Config.fromfile(SWIN_CONFIG).model.backbone
    filters = _patch_filters(swin.embed_dims, 4, images, seed)
    _write(folder / "swin_demo.pth", _random_swin(swin, filters, seed))


def _write(path: Path, weights: Weights, **more: Any) -> None:
    import torch

    tensors = {key: torch.from_numpy(value) for key, value in weights.items()}
    with atomic_writer(path) as stream:
        torch.save({"model": tensors, **more}, stream)


def _random_cae(backbone: Any, seed: int) -> dict[str, np.ndarray]:
    """Return random weights of the encoder, as training from scratch would begin."""
    rng = np.random.default_rng([seed, 2])
    width, hidden = backbone.embed_dim, int(backbone.embed_dim * backbone.mlp_ratio)
    patch = backbone.patch_size
    grid = backbone.img_size // patch - 2  # smaller than the model's, so that it is resized

    def draw(*shape: int) -> np.ndarray:
        return rng.normal(0, width**-0.5, shape).astype(np.float32)

    def flat(value: float, size: int = width) -> np.ndarray:
        return np.full(size, value, np.float32)

    weights = {
        "cls_token": 0.02 * draw(1, 1, width),
        "pos_embed": _positions(grid, width),
        "patch_embed.proj.weight": 0.3 * draw(width, 3, patch, patch),
        "patch_embed.proj.bias": flat(0),
        "norm.weight": flat(1),
        "norm.bias": flat(0),
    }
    for number in range(backbone.depth):
        block = {
            "gamma_1": flat(backbone.init_values),
            "gamma_2": flat(backbone.init_values),
            "norm1.weight": flat(1),
            "norm1.bias": flat(0),
            "attn.q_bias": flat(0),
            "attn.v_bias": flat(0),
            "attn.qkv.weight": draw(3 * width, width),
            "attn.proj.weight": draw(width, width),
            "attn.proj.bias": flat(0),
            "norm2.weight": flat(1),
            "norm2.bias": flat(0),
            "mlp.fc1.weight": draw(hidden, width),
            "mlp.fc1.bias": flat(0, hidden),
            "mlp.fc2.weight": draw(width, hidden),
            "mlp.fc2.bias": flat(0),
        }
        weights |= {f"blocks.{number}.{key}": value for key, value in block.items()}
    return weights


def _positions(grid: int, width: int) -> np.ndarray:
    """Return the sine-cosine embedding of a square grid, a row of zeros for the class token."""
    rates = 10000.0 ** -(np.arange(width // 4) / (width // 4))
    place = np.arange(grid)[:, None] * rates
    across, down = np.tile(place, (grid, 1)), np.repeat(place, grid, axis=0)
    rows = [np.sin(across), np.cos(across), np.sin(down), np.cos(down)]
    embedding = np.concatenate(rows, axis=1)
    return np.vstack([np.zeros((1, width)), embedding])[None].astype(np.float32)


def _random_swin(backbone: Any, filters: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Return weights under the names of Swin's official files; all but the filters are random."""
    rng = np.random.default_rng([seed, 4])
    weights = {"patch_embed.proj.weight": filters}
    weights["patch_embed.proj.bias"] = np.zeros(len(filters), np.float32)

    def layer_norm(name: str, width: int) -> None:
        weights[f"{name}.weight"] = np.ones(width, np.float32)
        weights[f"{name}.bias"] = np.zeros(width, np.float32)

    def linear(name: str, wide: int, narrow: int, *, bias: bool = True) -> None:
        values = rng.normal(0, narrow**-0.5, (wide, narrow))
        weights[f"{name}.weight"] = values.astype(np.float32)
        if bias:
            weights[f"{name}.bias"] = np.zeros(wide, np.float32)

    layer_norm("patch_embed.norm", len(filters))
    table = (2 * backbone.window_size - 1) ** 2
    for stage, (depth, heads) in enumerate(zip(backbone.depths, backbone.num_heads, strict=True)):
        width = backbone.embed_dims * 2**stage
        if stage:
            layer_norm(f"layers.{stage - 1}.downsample.norm", 2 * width)
            linear(f"layers.{stage - 1}.downsample.reduction", width, 2 * width, bias=False)
        for number in range(depth):
            block = f"layers.{stage}.blocks.{number}"
            layer_norm(f"{block}.norm1", width)
            tables = 0.02 * rng.normal(size=(table, heads))
            weights[f"{block}.attn.relative_position_bias_table"] = tables.astype(np.float32)
            linear(f"{block}.attn.qkv", 3 * width, width)
            linear(f"{block}.attn.proj", width, width)
            layer_norm(f"{block}.norm2", width)
            linear(f"{block}.mlp.fc1", backbone.mlp_ratio * width, width)
            linear(f"{block}.mlp.fc2", width, backbone.mlp_ratio * width)
    layer_norm("norm", width)
    linear("head", 1000, width)
    return weights


def _patch_filters(number: int, side: int, images: Sequence[np.ndarray], seed: int) -> np.ndarray:
    """Return the principal components of the images' patches, scaled to equal variance."""
    rng = np.random.default_rng([seed, 3])
    patches = np.empty((PATCHES, side, side, 3))
    for row in patches:
        image = images[rng.integers(len(images))]
        top, left = (rng.integers(0, length - side + 1) for length in image.shape[:2])
        row[:] = (image[top : top + side, left : left + side] - MEAN) / STD
    flat = patches.transpose(0, 3, 1, 2).reshape(PATCHES, -1)
    values, vectors = np.linalg.eigh(flat.T @ flat / PATCHES)
    best = np.argsort(values)[::-1][:number]
    # The sign of an eigenvector is arbitrary: fix it, so that one seed gives one checkpoint.
    filters = vectors[:, best].T / np.sqrt(values[best])[:, None]
    filters *= np.sign(filters[np.arange(len(best)), np.abs(filters).argmax(1)])[:, None]
    return filters.reshape(-1, 3, side, side).astype(np.float32)

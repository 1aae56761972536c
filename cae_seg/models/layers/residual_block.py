"""BEiT blocks whose residual branches run in few kernels."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from timm.models.beit import Block
from torch import Tensor, nn
from torch.nn import functional as F

from cae_seg.models.layers.stochastic import SampleDropPath
from cae_seg.models.ops.precision import product_dtype
from cae_seg.models.ops.residual import (
    NormLinear,
    ResidualLinear,
    Scale,
    WithGradient,
    cast_copies,
    scales,
)


class Operands(NamedTuple):
    """What a block computes with: its parameters in the precision of products, and its scales."""

    qkv: Tensor
    proj: Tensor
    fc1: Tensor
    fc2: Tensor
    biases: tuple[Tensor | None, Tensor, Tensor, Tensor]
    table: Tensor | None  # of relative positions
    scales: tuple[Scale, Scale]


class ResidualBlock(Block):
    """timm's BEiT block with the same parameters and results.

    `attn` must have `mix`, as `CAEAttention`. Dropout of projections and layers of
    other types than the published ones go timm's way.
    """

    fast_path, fast = "fused_block", True

    def forward(
        self,
        x: Tensor,
        shared_rel_pos_bias: Tensor | None = None,
        operands: Operands | None = None,
    ) -> Tensor:
        """Attend, then mix channels: (B, N, C) → (B, N, C)."""
        if not self.fits(x):
            return super().forward(x, shared_rel_pos_bias)
        attn, mlp = self.attn, self.mlp
        given = operands or operands_of([self], x)[0]
        qkv_bias, proj_bias, fc1_bias, fc2_bias = given.biases
        parts = () if attn.q_bias is None else (attn.q_bias, attn.k_bias, attn.v_bias)
        h = self._norm_linear(x, self.norm1, given.qkv, qkv_bias, *parts)
        h = attn.mix(h, shared_rel_pos_bias, given.table)
        first, second = given.scales
        x = ResidualLinear.apply(x, h, given.proj, proj_bias, first, self.gamma_1, attn.proj.bias)
        h = F.gelu(self._norm_linear(x, self.norm2, given.fc1, fc1_bias, mlp.fc1.bias))
        return ResidualLinear.apply(x, h, given.fc2, fc2_bias, second, self.gamma_2, mlp.fc2.bias)

    def fits(self, x: Tensor) -> bool:
        """Tell whether the block may run in few kernels."""
        mlp = self.mlp
        drops = any(
            layer.training and layer.p > 0
            for layer in (self.attn.proj_drop, mlp.drop1, mlp.drop2)
            if isinstance(layer, nn.Dropout)
        )
        known = type(mlp.act) is nn.GELU and isinstance(mlp.norm, nn.Identity)
        return self.fast and known and not drops and x.dtype == self.norm1.weight.dtype

    def matrices(self) -> list[Tensor]:
        """Return the four matrices."""
        layers = self.attn.qkv, self.attn.proj, self.mlp.fc1, self.mlp.fc2
        return [layer.weight for layer in layers]

    def masks(self, x: Tensor) -> list[Tensor | None]:
        """Return the masks of the two branches for `x`."""
        paths = self.drop_path1, self.drop_path2
        return [path.mask_for(x) if isinstance(path, SampleDropPath) else None for path in paths]

    @staticmethod
    def _norm_linear(
        x: Tensor, norm: nn.LayerNorm, weight: Tensor, bias: Tensor | None, *parts: Tensor
    ) -> Tensor:
        return NormLinear.apply(x, norm.weight, norm.bias, norm.eps, weight, bias, *parts)


def operands_of(blocks: Sequence[ResidualBlock], x: Tensor) -> list[Operands]:
    """Prepare blocks for input `x` (B, N, C): everything is cast by one kernel for all of them.

    The gradients of each block are cast by a kernel of its own, as soon as they are there.
    """
    gammas = [gamma for block in blocks for gamma in (block.gamma_1, block.gamma_2)]
    masks = [mask for block in blocks for mask in block.masks(x)]
    factors = scales(gammas, masks, x.shape[1])
    pairs = list(zip(factors[::2], factors[1::2], strict=True))
    dtype = product_dtype(x)
    if dtype == x.dtype:
        return [_plain(block, pair) for block, pair in zip(blocks, pairs, strict=True)]
    groups = [group for block in blocks for group in _groups(block)]
    copies = iter(cast_copies(groups, dtype))
    return [_cast(block, pair, copies) for block, pair in zip(blocks, pairs, strict=True)]


def _groups(block: ResidualBlock) -> list[list[Tensor]]:
    """Return what is cast for a block; the tensors of a group are joined."""
    attn, mlp = block.attn, block.mlp
    biases = [[attn.proj.bias], [mlp.fc1.bias], [mlp.fc2.bias]]
    if attn.q_bias is not None:
        biases.insert(0, [attn.q_bias, attn.k_bias, attn.v_bias])
    tables = (
        [] if attn.relative_position_bias_table is None else [[attn.relative_position_bias_table]]
    )
    return [*([matrix] for matrix in block.matrices()), *biases, *tables]


def _cast(block: ResidualBlock, scales: tuple[Scale, Scale], copies: Iterator[Tensor]) -> Operands:
    attn, matrices = block.attn, block.matrices()
    cast = WithGradient.apply(*matrices, *(next(copies) for _ in matrices))
    qkv_bias = None if attn.q_bias is None else next(copies)
    biases = qkv_bias, next(copies), next(copies), next(copies)
    table = None if attn.relative_position_bias_table is None else next(copies)
    return Operands(*cast, biases, table, scales)


def _plain(block: ResidualBlock, scales: tuple[Scale, Scale]) -> Operands:
    attn, mlp = block.attn, block.mlp
    qkv_bias = None
    if attn.q_bias is not None:
        qkv_bias = torch.cat([b.detach() for b in (attn.q_bias, attn.k_bias, attn.v_bias)])
    biases = qkv_bias, *(layer.bias.detach() for layer in (attn.proj, mlp.fc1, mlp.fc2))
    table = attn.relative_position_bias_table
    return Operands(*block.matrices(), biases, table if table is None else table.detach(), scales)

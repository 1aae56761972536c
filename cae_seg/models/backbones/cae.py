"""The CAE backbone: a BEiT-style vision transformer with a four-level pyramid over its blocks.

Blocks and patch embedding are timm's. This file adds what is specific to CAE: the published
constructor and parameter names, fixed sine-cosine positions, the taps and the pyramid. Attention
runs as one fused kernel over a bias that is laid out once per forward instead of gathered element
by element.
"""

from collections.abc import Collection, Sequence
from functools import partial

import torch
from mmengine.model import BaseModule
from mmseg.registry import MODELS
from timm.layers import PatchEmbed, to_2tuple, trunc_normal_
from timm.models.beit import Attention, RelativePositionBias
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from cae_seg.models.layers.batch_norm import AnyDeviceSyncBN
from cae_seg.models.layers.pyramid import raise_levels
from cae_seg.models.layers.residual_block import ResidualBlock, operands_of
from cae_seg.models.layers.stochastic import SampleDropPath
from cae_seg.models.ops.attention import attend
from cae_seg.models.ops.convolution import Deconvolution, Unexpanded
from cae_seg.models.ops.precision import product_dtype
from cae_seg.models.ops.relative_bias import RelativeBias
from cae_seg.models.pretrained.architectures import VIT
from cae_seg.models.pretrained.load import FilledFromCheckpoint


def sincos_position_embedding(
    height: int, width: int, dim: int, temperature: float = 10000.0
) -> Tensor:
    """Return the fixed 2-D sine-cosine embedding, (1, 1 + height·width, dim); class token zero.

    The published code walks the grid column by column while patches come row by row. On a square
    grid this only swaps the two halves; on any other the numbers are kept as published.
    """
    if dim % 4:
        raise ValueError(f"embed_dim: {dim} is not a multiple of 4, as 2-D positions need")
    omega = 1.0 / temperature ** (torch.arange(dim // 4, dtype=torch.float32) / (dim // 4))
    columns, rows = torch.meshgrid(
        torch.arange(width, dtype=torch.float32),
        torch.arange(height, dtype=torch.float32),
        indexing="ij",
    )
    x, y = columns.flatten()[:, None] * omega, rows.flatten()[:, None] * omega
    patches = torch.cat([x.sin(), x.cos(), y.sin(), y.cos()], dim=1)
    return torch.cat([patches.new_zeros(1, dim), patches])[None]


def _keep_index(module: nn.Module) -> None:
    """List `relative_position_index` in the state dict, as published checkpoints do."""
    module.register_buffer("relative_position_index", module.relative_position_index)


class CAEAttention(Attention):
    """timm's BEiT attention with an aligned bias and an optional scale of the scores.

    Other arguments are those of `timm.models.beit.Attention`.

    Args:
        scale: factor on query·key; 1/√(head width) where None.
    """

    fast_path, fast = "efficient_attention", True

    def __init__(self, *args, scale: float | None = None, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.scale = scale or self.scale
        if self.relative_position_index is not None:
            _keep_index(self)

    def forward(self, x: Tensor, shared_rel_pos_bias: Tensor | None = None) -> Tensor:
        """Attend over tokens: (B, N, C) → (B, N, C)."""
        bias = None
        if self.q_bias is not None:
            bias = torch.cat([self.q_bias, self.k_bias, self.v_bias])
        qkv = F.linear(x, self.qkv.weight, bias)
        return self.proj_drop(self.proj(self.mix(qkv, shared_rel_pos_bias)))

    def mix(
        self, qkv: Tensor, shared_rel_pos_bias: Tensor | None = None, table: Tensor | None = None
    ) -> Tensor:
        """Mix the values of all tokens: (B, N, 3 · C) → (B, N, C).

        `table` is the relative position table in the precision of `qkv`, if that is at hand.
        """
        qkv = qkv.unflatten(2, (3, self.num_heads, -1))
        return attend(
            qkv,  # B, N, 3, heads, C / heads
            self._score_bias(qkv.dtype, shared_rel_pos_bias, table),
            self.scale,
            dropout=self.attn_drop.p if self.training else 0.0,
            fast=self.fast,
        )

    def _score_bias(
        self, dtype: torch.dtype, shared: Tensor | None, values: Tensor | None
    ) -> Tensor | None:
        table = self.relative_position_bias_table
        if table is None:
            return shared
        values = table.detach().to(dtype) if values is None else values
        own = RelativeBias.apply(table, *self.window_size, values)
        return own[None] if shared is None else own[None] + shared


@MODELS.register_module()
class CAE(FilledFromCheckpoint, BaseModule):
    """Vision transformer of Context Autoencoder checkpoints, with outputs at strides 4 to 32.

    The constructor and the parameter names are the published ones, so published checkpoints load
    unchanged. Forward takes images (B, in_chans, H, W) of exactly `img_size` and returns four maps
    (B, embed_dim, H/s, W/s), s = 4, 8, 16, 32 (2, 4, 8, 16 … of half the stride for patches of 8).

    Args:
        img_size: height and width in pixels, or one number for both.
        patch_size: side of a patch in pixels, 16 or 8.
        in_chans: channels of the images.
        embed_dim: width of a token.
        depth: number of blocks.
        num_heads: attention heads per block.
        mlp_ratio: width of the hidden MLP layer over `embed_dim`.
        qkv_bias: whether queries and values (never keys) have a bias.
        qk_scale: factor on the attention scores; 1/√(head width) where None.
        drop_rate: dropout on embeddings, projections and the second MLP layer.
        attn_drop_rate: dropout on attention weights.
        drop_path_rate: stochastic depth of the last block, falling linearly to 0 at the first.
        init_values: start of the layer scale; None for a network without one.
        use_checkpoint: recompute blocks in the backward pass to save memory.
        use_abs_pos_emb: trained position embedding, where `use_sincos_pos_embed` is off.
        use_rel_pos_bias: relative position table in every block.
        use_sincos_pos_embed: fixed 2-D sine-cosine position embedding.
        use_shared_rel_pos_bias: one relative position table for all blocks.
        out_indices: the four blocks, from 0, whose outputs feed the pyramid.
        out_with_norm: apply a final LayerNorm to the taps.
        init_cfg: `dict(type="Pretrained", checkpoint=<path>)` to start from a checkpoint.

    Attributes:
        deconvolved: levels of the pyramid, from 0, that come out of a deconvolution.
    """

    architecture = VIT
    deconvolved: tuple[int, ...] = ()

    def __init__(
        self,
        img_size: int | Sequence[int] = 512,
        patch_size: int = 16,
        in_chans: int = 3,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = False,
        qk_scale: float | None = None,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        init_values: float | None = None,
        use_checkpoint: bool = False,
        use_abs_pos_emb: bool = False,
        use_rel_pos_bias: bool = True,
        use_sincos_pos_embed: bool = True,
        use_shared_rel_pos_bias: bool = False,
        out_indices: Sequence[int] = (3, 5, 7, 11),
        out_with_norm: bool = False,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if not all(0 <= i < depth for i in out_indices):
            raise ValueError(f"out_indices: {out_indices} are not blocks of {depth}")
        if embed_dim % num_heads:
            raise ValueError(f"embed_dim: {embed_dim} is not a multiple of num_heads, {num_heads}")
        self.embed_dim, self.out_indices = embed_dim, tuple(out_indices)
        self.use_checkpoint = use_checkpoint
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        patches = PatchEmbed(to_2tuple(img_size), patch_size, in_chans, embed_dim)
        self.grid_size = patches.grid_size  # patches down, patches across
        self.pos_embed = self._position_embedding(use_sincos_pos_embed, use_abs_pos_emb)
        self.patch_embed = patches
        self.pos_drop = nn.Dropout(drop_rate)
        self.rel_pos_bias = None
        if use_shared_rel_pos_bias:
            self.rel_pos_bias = RelativePositionBias(self.grid_size, num_heads)
            _keep_index(self.rel_pos_bias)
        attention = partial(
            CAEAttention,
            embed_dim,
            num_heads,
            qkv_bias=qkv_bias,
            attn_drop=attn_drop_rate,
            proj_drop=drop_rate,
            window_size=self.grid_size if use_rel_pos_bias else None,
            scale=qk_scale,
        )
        self.blocks = nn.ModuleList(
            _block(embed_dim, num_heads, mlp_ratio, drop_rate, init_values, rate, attention)
            for rate in torch.linspace(0, drop_path_rate, depth, device="cpu").tolist()
        )
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6) if out_with_norm else nn.Identity()
        self._add_pyramid(patch_size)
        self._draw_weights()

    def _add_pyramid(self, patch_size: int) -> None:
        if len(self.out_indices) != 4:
            raise ValueError(f"out_indices: {self.out_indices} are not four blocks")
        self.fpn1, self.fpn2, self.fpn3, self.fpn4 = _pyramid(self.embed_dim, patch_size)
        self.deconvolved = (0, 1) if patch_size == 16 else (0,)

    def _position_embedding(self, fixed: bool, trained: bool) -> nn.Parameter | None:
        height, width = self.grid_size
        if fixed:
            embedding = sincos_position_embedding(height, width, self.embed_dim)
            return nn.Parameter(embedding, requires_grad=False)
        if trained:
            return nn.Parameter(torch.zeros(1, 1 + height * width, self.embed_dim))
        return None

    def _draw_weights(self) -> None:
        """Draw start values; later blocks' residual branches start smaller, as in BEiT."""
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                trunc_normal_(layer.weight, std=0.02)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        trunc_normal_(self.cls_token, std=0.02)
        if self.pos_embed is not None and self.pos_embed.requires_grad:
            trunc_normal_(self.pos_embed, std=0.02)
        with torch.no_grad():
            for depth, block in enumerate(self.blocks, start=1):
                block.attn.proj.weight.div_((2 * depth) ** 0.5)
                block.mlp.fc2.weight.div_((2 * depth) ** 0.5)

    def forward(
        self, x: Tensor, unexpanded: Collection[int] = ()
    ) -> tuple[Tensor | Unexpanded, ...]:
        """Return the pyramid of images (B, in_chans, H, W); see the class for the shapes.

        Args:
            x: the images.
            unexpanded: levels, of those in `deconvolved`, to leave before their deconvolution.
        """
        taps = self._taps(x, self.out_indices)
        levels = (self.fpn1, self.fpn2, self.fpn3, self.fpn4)
        return raise_levels(levels, [taps[i] for i in self.out_indices], unexpanded)

    def _taps(self, x: Tensor, indices: Sequence[int]) -> dict[int, Tensor]:
        """Return the outputs of blocks as maps (B, embed_dim, H/patch, W/patch)."""
        x = self.patch_embed(x)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1)  # B, 1 + patches, C
        if self.pos_embed is not None:
            x = x + self.pos_embed
        x = self.pos_drop(x)
        shared = self._shared_bias(x)
        blocks = self.blocks[: max(indices) + 1]
        operands = [None] * len(blocks)
        if all(block.fits(x) for block in blocks):
            operands = operands_of(blocks, x)
        taps = {}
        for i, block in enumerate(blocks):
            if self.use_checkpoint and torch.is_grad_enabled():
                x = checkpoint(block, x, shared, operands[i], use_reentrant=False)
            else:
                x = block(x, shared, operands[i])
            if i in indices:
                taps[i] = self.norm(x[:, 1:]).transpose(1, 2).unflatten(2, self.grid_size)
        return taps

    def _shared_bias(self, x: Tensor) -> Tensor | None:
        if self.rel_pos_bias is None:
            return None
        table = self.rel_pos_bias.relative_position_bias_table
        values = table.detach().to(product_dtype(x))
        return RelativeBias.apply(table, *self.grid_size, values)[None]


@MODELS.register_module()
class CAEBlocks(CAE):
    """`CAE` without its pyramid: any number of taps, at the stride of the patches.

    For heads that take plain maps (linear, SETR, FCN). Forward returns a map
    (B, embed_dim, H/patch, W/patch) for each of `out_indices`.
    """

    def _add_pyramid(self, patch_size: int) -> None:
        pass

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the tapped blocks' maps of images (B, in_chans, H, W)."""
        return self.forward_taps(x, self.out_indices)

    def forward_taps(self, x: Tensor, indices: Sequence[int]) -> tuple[Tensor, ...]:
        """Return the maps of other blocks than its own taps."""
        taps = self._taps(x, indices)
        return tuple(taps[i] for i in indices)


def _block(
    dim: int,
    heads: int,
    mlp_ratio: float,
    drop: float,
    init_values: float | None,
    drop_path: float,
    attention: partial,
) -> ResidualBlock:
    """Build one transformer block; dropout in the MLP follows its second layer only."""
    norm = partial(nn.LayerNorm, eps=1e-6)
    block = ResidualBlock(
        dim, heads, mlp_ratio=mlp_ratio, proj_drop=drop, init_values=init_values, norm_layer=norm
    )
    block.attn = attention()
    block.mlp.drop1 = nn.Identity()
    if drop_path > 0:
        block.drop_path1, block.drop_path2 = SampleDropPath(drop_path), SampleDropPath(drop_path)
    return block


def _pyramid(dim: int, patch_size: int) -> tuple[nn.Module, ...]:
    """Build the four layers that bring the taps to strides 4, 8, 16 and 32."""
    upsample = partial(Deconvolution, dim, dim)
    if patch_size == 16:
        fourfold = nn.Sequential(upsample(), AnyDeviceSyncBN(dim), nn.GELU(), upsample())
        return fourfold, nn.Sequential(upsample()), nn.Identity(), nn.MaxPool2d(2)
    if patch_size == 8:
        pools = nn.Sequential(nn.MaxPool2d(2)), nn.Sequential(nn.MaxPool2d(4))
        return nn.Sequential(upsample()), nn.Identity(), *pools
    raise ValueError(f"patch_size: {patch_size} has no pyramid; 16 and 8 have")

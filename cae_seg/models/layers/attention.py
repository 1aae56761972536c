"""Attention layers of mmsegmentation and mmcv by one fused kernel, same parameters and results."""

from typing import Any

import torch
from mmseg.models.backbones.beit import BEiTAttention
from torch import Tensor, nn
from torch.nn import functional as F

from cae_seg.models.ops.attention import attend, attention_kernel
from cae_seg.models.ops.relative_bias import RelativeBias


class FastBEiTAttention(BEiTAttention):
    """mmsegmentation's `BEiTAttention` over a bias that is laid out once.

    Takes and returns tokens (B, N, C), class token first.
    """

    fast_path, fast = "efficient_attention", True

    def forward(self, x: Tensor) -> Tensor:
        """Attend over tokens."""
        bias = self.qkv.bias
        if self.bias == "qv_bias":
            bias = torch.cat([self.q_bias, torch.zeros_like(self.v_bias), self.v_bias])
        qkv = F.linear(x, self.qkv.weight, bias).unflatten(2, (3, self.num_heads, -1))
        table = self.relative_position_bias_table
        scores = RelativeBias.apply(table, *self.window_size, table.detach().to(qkv.dtype))
        dropout = self.attn_drop.p if self.training else 0.0
        out = attend(qkv, scores[None], self.scale, dropout=dropout, fast=self.fast)
        return self.proj_drop(self.proj(out))


class FastMultiheadAttention(nn.MultiheadAttention):
    """`nn.MultiheadAttention` for a caller that does not look at the attention weights.

    The weights of all heads are then never in memory: for ViT-B and an image of 512 × 683 they are
    91 MB a block.
    """

    fast_path, fast = "efficient_attention", True

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """Attend as torch does, without the weights; None in their place."""
        if not self.fast:
            return super().forward(*args, **kwargs)
        with attention_kernel(self.out_proj.weight.device.type, fast=True):
            return super().forward(*args, **{**kwargs, "need_weights": False})

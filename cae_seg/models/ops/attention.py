"""Attention with a bias on the scores: softmax(scale · q kᵀ + bias) v.

This is torch's fused kernel, the one that takes a bias with a gradient, except where a CPU trains
the bias (`cae_seg.models.ops.cpu.attention`).
"""

import contextlib
from contextlib import AbstractContextManager

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from cae_seg.models.accelerate import Switch
from cae_seg.models.ops.cpu.attention import TiledAttention

_MIN_TOKENS = 256


def attend(
    qkv: Tensor, bias: Tensor | None, scale: float, *, dropout: float = 0.0, tiled: Switch = True
) -> Tensor:
    """Return the attention output, (B, N, heads · width).

    Args:
        qkv: queries, keys and values, (B, N, 3, heads, width of a head).
        bias: added to the scores, (1, heads, N, N) or None.
        scale: factor on the products of queries and keys.
        dropout: probability of a zero among the attention weights.
        tiled: take the form for CPUs where it applies (float32 on the CPU, bias, no dropout) and
            pays (many tokens, a bias with a gradient), or "always" where it applies.
    """
    trains = torch.is_grad_enabled() and bias is not None and bias.requires_grad
    fits = qkv.device.type == "cpu" and qkv.dtype == torch.float32 and not dropout
    pays = tiled == "always" or (tiled and trains and qkv.shape[1] >= _MIN_TOKENS)
    if pays and fits and bias is not None and bias.dtype == torch.float32:
        return TiledAttention.apply(qkv, bias[0], scale).flatten(2)
    q, k, v = _SplitHeads.apply(qkv)
    with _kernel(qkv, bias):
        out = F.scaled_dot_product_attention(
            q, k, v, attn_mask=bias, dropout_p=dropout, scale=scale
        )
    return out.transpose(1, 2).flatten(2)


def _kernel(qkv: Tensor, bias: Tensor | None) -> AbstractContextManager:
    """Choose the kernel on CUDA, so that it is the same in training and evaluation.

    The memory-efficient one takes a bias and its gradient. Without a bias the choice is torch's.
    """
    if qkv.device.type != "cuda" or bias is None:
        return contextlib.nullcontext()
    return sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH])


class _SplitHeads(torch.autograd.Function):
    """Queries, keys and values (B, heads, N, width) of (B, N, 3, heads, width), all views."""

    @staticmethod
    def forward(ctx, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the three views."""
        return qkv.permute(2, 0, 3, 1, 4).unbind(0)

    @staticmethod
    def backward(ctx, *gradients: Tensor) -> Tensor:
        """Lay the gradients out as `qkv` is, by one copy."""
        return torch.stack([gradient.transpose(1, 2) for gradient in gradients], dim=2)

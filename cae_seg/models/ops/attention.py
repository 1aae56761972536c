"""Attention with a bias on the scores: softmax(scale · q kᵀ + bias) v, by torch's fused kernels."""

import contextlib
from contextlib import AbstractContextManager

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

# The memory-efficient kernel is the one that takes a bias and its gradient, in any precision: so
# training and evaluation use the same. Inputs that it does not take (double precision) are computed
# step by step.
_ON_CUDA = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def attend(
    qkv: Tensor, bias: Tensor | None, scale: float, *, dropout: float = 0.0, fast: bool = True
) -> Tensor:
    """Return the attention output, (B, N, heads · width).

    Args:
        qkv: queries, keys and values, (B, N, 3, heads, width of a head).
        bias: added to the scores, (1, heads, N, N) or None.
        scale: factor on the products of queries and keys.
        dropout: probability of a zero among the attention weights.
        fast: take the same kernel on CUDA whatever the inputs; else torch chooses.
    """
    q, k, v = _SplitHeads.apply(qkv)
    with attention_kernel(qkv.device.type, fast):
        out = F.scaled_dot_product_attention(
            q, k, v, attn_mask=bias, dropout_p=dropout, scale=scale
        )
    return out.transpose(1, 2).flatten(2)


def attention_kernel(kind: str, fast: bool) -> AbstractContextManager:
    """Choose the kernel of attention on a kind of device, if `fast`; else torch chooses."""
    return sdpa_kernel(_ON_CUDA) if fast and kind == "cuda" else contextlib.nullcontext()


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

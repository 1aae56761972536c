"""Attention with a bias on the scores: softmax(scale · q kᵀ + bias) v.

On CUDA this is torch's fused kernel. On the CPU torch falls back to whole score tensors as soon as
the bias has a gradient: 100 MB for two images, several times over. Here a few heads at a time pass
through buffers that stay in the caches, and the backward computes the scores again.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from cae_seg.models.accelerate import Switch
from cae_seg.models.ops.cpu.memory import scratch

# Score elements at a time: two heads of 1025 tokens, 8 MB.
_BLOCK = 2 * 1025 * 1025
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
            pays (many tokens), or "always" where it applies.
    """
    fits = qkv.device.type == "cpu" and qkv.dtype == torch.float32 and not dropout
    pays = tiled == "always" or (tiled and qkv.shape[1] >= _MIN_TOKENS)
    if pays and fits and bias is not None and bias.dtype == torch.float32:
        return _TiledAttention.apply(qkv, bias[0], scale).flatten(2)
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # B, heads, N, width
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout, scale=scale)
    return out.transpose(1, 2).flatten(2)


class _TiledAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, qkv: Tensor, bias: Tensor, scale: float) -> Tensor:
        batch, tokens, _, heads, width = qkv.shape
        out = qkv.new_empty(batch, tokens, heads, width)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        for image, run in _blocks(batch, heads, tokens):
            weights = _weights(q[image, run], k[image, run], bias[run], scale)
            out[image, :, run] = torch.bmm(weights, v[image, run]).transpose(0, 1)
        ctx.save_for_backward(qkv, bias, out)
        ctx.scale = scale
        return out

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor | None, None]:
        qkv, bias, out = ctx.saved_tensors
        batch, tokens, _, heads, _ = qkv.shape
        for_qkv = torch.empty_like(qkv)
        for_bias = torch.zeros_like(bias) if ctx.needs_input_grad[1] else None
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        for_q, for_k, for_v = for_qkv.permute(2, 0, 3, 1, 4)
        # What a row of the soft-max takes off each of its scores' gradients.
        mean = (gradient * out).sum(-1, keepdim=True).transpose(1, 2)
        gradient = gradient.transpose(1, 2)
        for here in _blocks(batch, heads, tokens):
            weights = _weights(q[here], k[here], bias[here[1]], ctx.scale)
            for_v[here] = torch.bmm(weights.transpose(1, 2), gradient[here])
            scores = scratch.take("attention scores", *weights.shape)
            torch.bmm(gradient[here], v[here].transpose(1, 2), out=scores)
            scores.sub_(mean[here]).mul_(weights)
            if for_bias is not None:
                for_bias[here[1]] += scores
            for_q[here] = torch.bmm(scores, k[here]).mul_(ctx.scale)
            for_k[here] = torch.bmm(scores.transpose(1, 2), q[here]).mul_(ctx.scale)
        return for_qkv, for_bias, None


def _blocks(batch: int, heads: int, tokens: int) -> list[tuple[int, slice]]:
    """Cut the heads of each image into runs whose scores fit the caches: (image, heads)."""
    step = max(1, _BLOCK // tokens**2)
    runs = [slice(first, min(first + step, heads)) for first in range(0, heads, step)]
    return [(image, run) for run in runs for image in range(batch)]


def _weights(q: Tensor, k: Tensor, bias: Tensor, scale: float) -> Tensor:
    """Return softmax(scale · q kᵀ + bias) of some heads of one image, (heads, N, N)."""
    scores = scratch.take("attention scores", *bias.shape)
    torch.baddbmm(bias, q, k.transpose(1, 2), alpha=scale, out=scores)
    return torch.softmax(scores, -1, out=scratch.take("attention weights", *bias.shape))

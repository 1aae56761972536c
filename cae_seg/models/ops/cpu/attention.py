"""Attention with a trained bias on the CPU, a few heads at a time.

torch falls back to whole score tensors there as soon as the bias has a gradient: 100 MB for two
images, several times over. Here scores pass through buffers that stay in the caches, and the
backward computes them again.
"""

import torch
from torch import Tensor

from cae_seg.models.ops.cpu.memory import scratch

# Score elements at a time: two heads of 1025 tokens, 8 MB.
_BLOCK = 2 * 1025 * 1025


class TiledAttention(torch.autograd.Function):
    """Attention over qkv (B, N, 3, heads, width) with a bias (heads, N, N)."""

    @staticmethod
    def forward(ctx, qkv: Tensor, bias: Tensor, scale: float) -> Tensor:
        """Attend, a few heads of an image at a time: (B, N, heads, width)."""
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
        """Compute the scores again; return the gradients of qkv and bias."""
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

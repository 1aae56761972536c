"""The two halves of a pre-norm residual branch, each as one step with few kernels.

What autograd would run as a dozen operations with a tensor between each two (norm, cast, product,
bias; product, bias, layer scale, drop path, addition) is written here with its gradient: biases
and scales are summed in the weights' own precision without casting anything first, and no tensor
of the residual stream's size is made only to be added. In float32 the operations are the plain
ones; under autocast the products run in its precision and the residual stream stays as it is.
"""

import torch
from torch import Tensor

_ATEN = torch.ops.aten


class CastWeights(torch.autograd.Function):
    """Cast matrices and vectors to another precision by one kernel, and gradients back by one."""

    @staticmethod
    def forward(ctx, dtype: torch.dtype, matrices: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return the first `matrices` tensors cast, and the rest as one vector.

        The gradients of the vectors do not come this way.
        """
        ctx.dtype, ctx.vectors = tensors[0].dtype, len(tensors) - matrices
        vectors = tensors[matrices:]
        flat = tensors[0].new_empty(sum(map(len, vectors)), dtype=dtype)
        cast = [torch.empty_like(tensor, dtype=dtype) for tensor in tensors[:matrices]]
        torch._foreach_copy_([*cast, *flat.split([len(v) for v in vectors])], list(tensors))
        ctx.mark_non_differentiable(flat)
        ctx.set_materialize_grads(False)
        return *cast, flat

    @staticmethod
    def backward(ctx, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Cast the gradients that there are."""
        present = [grad for grad in gradients[:-1] if grad is not None]
        cast = [torch.empty_like(grad, dtype=ctx.dtype) for grad in present]
        if present:
            torch._foreach_copy_(cast, present)
        rest = iter(cast)
        found = [None if grad is None else next(rest) for grad in gradients[:-1]]
        return None, None, *found, *[None] * ctx.vectors


class NormLinear(torch.autograd.Function):
    """`linear(layer_norm(x))` for x (B, N, C): (B, N, K), in the precision of the matrix.

    The bias comes in parts that lie one after the other (queries, keys, values), with their sum
    `bias` in the precision of the matrix; gradients go to the parts.
    """

    @staticmethod
    def forward(
        ctx,
        x: Tensor,
        norm_weight: Tensor,
        norm_bias: Tensor,
        eps: float,
        weight: Tensor,
        bias: Tensor | None,
        *parts: Tensor,
    ) -> Tensor:
        """Normalise, cast, multiply."""
        with torch.autocast(x.device.type, enabled=False):
            y, mean, rstd = torch.native_layer_norm(x, x.shape[-1:], norm_weight, norm_bias, eps)
            y = y.to(weight.dtype)
            ctx.save_for_backward(x, mean, rstd, norm_weight, norm_bias, y, weight)
            ctx.sizes = [len(part) for part in parts]
            return torch.nn.functional.linear(y, weight, bias)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of x, norm and matrix, and those of the bias's parts."""
        x, mean, rstd, norm_weight, norm_bias, y, weight = ctx.saved_tensors
        rows = grad.flatten(0, 1)
        for_weight = rows.t() @ y.flatten(0, 1) if ctx.needs_input_grad[4] else None
        for_parts = _bias_gradients(rows, ctx, 6, norm_weight.dtype)
        for_y = (rows @ weight).view_as(x).to(x.dtype)
        asked = list(ctx.needs_input_grad[:3])
        for_x, for_norm_weight, for_norm_bias = _ATEN.native_layer_norm_backward(
            for_y, x, x.shape[-1:], mean, rstd, norm_weight, norm_bias, asked
        )
        return for_x, for_norm_weight, for_norm_bias, None, for_weight, None, *for_parts


def _bias_gradients(rows: Tensor, ctx, first: int, dtype: torch.dtype) -> list[Tensor | None]:
    asked = ctx.needs_input_grad[first:]
    if not any(asked):
        return [None] * len(asked)
    parts = rows.sum(0, dtype=dtype).split(ctx.sizes)
    return [part if want else None for part, want in zip(parts, asked, strict=True)]


class ResidualLinear(torch.autograd.Function):
    """`x + mask · gamma · linear(h)` for x (B, N, C) and h (B, N, K).

    Args:
        x: the residual stream.
        h: the branch before its last matrix, in the precision of that.
        weight: (C, K).
        bias: (C,) in the precision of the matrix.
        gamma: layer scale (C,), or None.
        mask: of drop path, (B, 1), or None.
        bias_parameter: what `bias` was cast from; gets its gradient.
    """

    @staticmethod
    def forward(
        ctx,
        x: Tensor,
        h: Tensor,
        weight: Tensor,
        bias: Tensor,
        gamma: Tensor | None,
        mask: Tensor | None,
        bias_parameter: Tensor,
    ) -> Tensor:
        """Multiply, scale and add."""
        with torch.autocast(x.device.type, enabled=False):
            y = torch.nn.functional.linear(h, weight, bias)
            scale = gamma
            if mask is not None:
                scale = (mask if gamma is None else mask * gamma)[:, None]  # B, 1, C or 1
            ctx.save_for_backward(h, weight, scale, mask, None if gamma is None else y)
            ctx.sizes = [len(bias)]
            return x + y if scale is None else torch.addcmul(x, y, scale)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of x, h, matrix, layer scale and bias."""
        h, weight, scale, mask, y = ctx.saved_tensors
        for_gamma = None if y is None else _scale_gradient(grad, y, mask)
        if scale is None:
            rows = grad.to(h.dtype)
        else:
            rows = torch.mul(grad, scale, out=torch.empty_like(grad, dtype=h.dtype))
        rows = rows.flatten(0, 1)
        for_weight = rows.t() @ h.flatten(0, 1) if ctx.needs_input_grad[2] else None
        (for_bias,) = _bias_gradients(rows, ctx, 6, grad.dtype)
        for_h = (rows @ weight).view_as(h)
        return grad, for_h, for_weight, None, for_gamma, None, for_bias


def _scale_gradient(grad: Tensor, y: Tensor, mask: Tensor | None) -> Tensor:
    """Return Σ mask · grad · y over images and tokens: (C,)."""
    by_image = (grad * y).sum(1)  # B, C
    if mask is None:
        return by_image.sum(0)
    return torch.mv(by_image.t(), mask[:, 0])

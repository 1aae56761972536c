"""The two halves of a pre-norm residual branch, each as one step with few kernels.

What autograd would run as a dozen operations with a tensor between each two (norm, cast, product,
bias; product, bias, layer scale, drop path, addition) is written here with its gradient: biases
and scales are summed in the weights' own precision without casting anything first, and no tensor
of the residual stream's size is made only to be added. In float32 the operations are the plain
ones; under autocast the products run in its precision and the residual stream stays as it is.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

_ATEN = torch.ops.aten


class WithGradient(torch.autograd.Function):
    """Copies of parameters in another precision, with the gradient of the parameters."""

    @staticmethod
    def forward(ctx, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return the second half of `tensors`, copies of the first half."""
        count = len(tensors) // 2
        ctx.dtypes = [parameter.dtype for parameter in tensors[:count]]
        ctx.strides = [parameter.stride() for parameter in tensors[:count]]
        ctx.set_materialize_grads(False)
        return tuple(copy.view_as(copy) for copy in tensors[count:])

    @staticmethod
    def backward(ctx, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        """Cast the gradients that there are, by one kernel."""
        present = [grad for grad in gradients if grad is not None]
        cast = [
            torch.empty_strided(grad.shape, stride, dtype=dtype, device=grad.device)
            for grad, stride, dtype in zip(gradients, ctx.strides, ctx.dtypes, strict=True)
            if grad is not None
        ]
        if present:
            torch._foreach_copy_(cast, present)
        rest = iter(cast)
        return *(None if grad is None else next(rest) for grad in gradients), *[None] * len(
            gradients
        )


@torch.no_grad()
def cast_copies(groups: Sequence[Sequence[Tensor]], dtype: torch.dtype) -> list[Tensor]:
    """Return a copy of each group, joined along the first axis, in another precision.

    One kernel for all of them; no gradient.
    """
    copies, parts = [], []
    for group in groups:
        lengths = [len(tensor) for tensor in group]
        copies.append(group[0].new_empty(sum(lengths), *group[0].shape[1:], dtype=dtype))
        parts += copies[-1].split(lengths)
    torch._foreach_copy_(parts, [tensor.detach() for group in groups for tensor in group])
    return copies


class NormLinear(torch.autograd.Function):
    """`linear(layer_norm(x))` for x (B, N, C): (B, N, K), in the precision of the matrix.

    The bias comes in consecutive parts (queries, keys, values), with their sum
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
    """`x + scale · linear(h)` for x (B, N, C) and h (B, N, K)."""

    @staticmethod
    def forward(
        ctx,
        x: Tensor,
        h: Tensor,
        weight: Tensor,
        bias: Tensor,
        scale: "Scale",
        gamma: Tensor | None,
        bias_parameter: Tensor,
    ) -> Tensor:
        """Multiply, scale and add.

        Args:
            ctx: of autograd.
            x: the residual stream.
            h: the branch before its last matrix, in the precision of that.
            weight: (C, K).
            bias: (C,) in the precision of the matrix.
            scale: layer scale times mask.
            gamma: the parameter in `scale`; gets its gradient.
            bias_parameter: what `bias` was cast from; gets its gradient.
        """
        with torch.autocast(x.device.type, enabled=False):
            y = torch.nn.functional.linear(h, weight, bias)
            factor = scale.factor
            ctx.save_for_backward(h, weight, factor, scale.mask, None if gamma is None else y)
            ctx.sizes = [len(bias)]
            return x + y if factor is None else torch.addcmul(x, y, factor)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of x, h, matrix, layer scale and bias."""
        h, weight, factor, mask, y = ctx.saved_tensors
        for_gamma = None if y is None else _scale_gradient(grad, y, mask)
        if factor is None:
            rows = grad.to(h.dtype)
        else:
            rows = torch.mul(grad, factor, out=torch.empty_like(grad, dtype=h.dtype))
        rows = rows.flatten(0, 1)
        for_weight = rows.t() @ h.flatten(0, 1) if ctx.needs_input_grad[2] else None
        (for_bias,) = _bias_gradients(rows, ctx, 6, grad.dtype)
        for_h = (rows @ weight).view_as(h)
        return grad, for_h, for_weight, None, None, for_gamma, for_bias


class Scale(NamedTuple):
    """What a residual branch is multiplied by.

    Args:
        factor: layer scale times mask, (B, 1, C) or (C,) or (B, 1, 1); None for one.
        mask: of drop path for each row of the branch, (B · N,); None without.
    """

    factor: Tensor | None
    mask: Tensor | None


def scales(
    gammas: Sequence[Tensor | None], masks: Sequence[Tensor | None], tokens: int
) -> list[Scale]:
    """Combine layer scales (C,) and masks (B, 1) of several branches, by a kernel for each step."""
    masked = [i for i, mask in enumerate(masks) if mask is not None]
    rows, factors = {}, {}
    if masked:
        stacked = torch.stack([masks[i] for i in masked])  # branches, B, 1
        by_row = stacked.expand(-1, -1, tokens).reshape(len(masked), -1)
        rows = dict(zip(masked, by_row.unbind(), strict=True))
        factors = dict(zip(masked, stacked[..., None].unbind(), strict=True))
        if all(gammas[i] is not None for i in masked):
            by_branch = torch.stack([gammas[i].detach() for i in masked])[:, None, None]
            factors = dict(zip(masked, (stacked[..., None] * by_branch).unbind(), strict=True))
    return [
        Scale(factors.get(i, gamma if gamma is None else gamma.detach()), rows.get(i))
        for i, gamma in enumerate(gammas)
    ]


def _scale_gradient(grad: Tensor, y: Tensor, mask: Tensor | None) -> Tensor:
    """Return Σ mask · grad · y over images and tokens: (C,)."""
    rows = (grad * y).flatten(0, 1)
    return rows.sum(0) if mask is None else torch.mv(rows.t(), mask)

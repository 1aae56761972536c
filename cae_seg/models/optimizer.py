"""AdamW over many groups of parameters, with the bookkeeping of all groups done at once."""

from collections.abc import Callable
from typing import Any

import torch
from mmengine.registry import OPTIMIZERS


@OPTIMIZERS.register_module()
class FastAdamW(torch.optim.AdamW):
    """`torch.optim.AdamW` with the same arguments, state and results.

    A layer-wise learning rate makes dozens of groups. With `fused=True` torch updates each by a
    kernel, and counts its steps by two more, which are two in all here. torch has no public way to
    do so: `_init_group` and `_fused_adamw_` are its own. `tests/models/test_optimizer.py`, which
    compares with AdamW to the bit, fails when they change.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update all parameters; as `torch.optim.Optimizer.step`."""
        if not all(group["fused"] for group in self.param_groups):
            return super().step(closure)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        groups = [self._collect(group) for group in self.param_groups]
        steps = [step for _, lists in groups for step in lists[5]]
        if steps:
            torch._foreach_add_(steps, 1)
        found_inf = getattr(self, "found_inf", None)
        for group, lists in groups:
            if lists[0]:
                self._update(group, *lists, found_inf)
        if found_inf is not None and steps:
            torch._foreach_sub_(steps, [found_inf.to(steps[0].device)] * len(steps))
        return loss

    def _collect(self, group: dict[str, Any]) -> tuple[dict[str, Any], tuple[list, ...]]:
        """Return a group with its parameters, gradients, moments (three kinds) and steps."""
        lists = tuple([] for _ in range(6))
        self._init_group(group, *lists)
        return group, lists

    def _update(
        self,
        group: dict[str, Any],
        params: list,
        grads: list,
        means: list,
        squares: list,
        largest_squares: list,
        steps: list,
        found_inf: torch.Tensor | None,
    ) -> None:
        torch._fused_adamw_(
            params,
            grads,
            means,
            squares,
            largest_squares,
            steps,
            amsgrad=group["amsgrad"],
            lr=group["lr"],
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=group["maximize"],
            grad_scale=getattr(self, "grad_scale", None),
            found_inf=found_inf,
        )

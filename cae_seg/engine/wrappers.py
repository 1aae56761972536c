"""Model wrappers: one step of the optimiser from several backward passes, on any device.

Registered as mmengine's model wrappers, so that its hooks find the model inside.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from mmengine.dist import get_world_size
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import OptimWrapper
from mmengine.registry import MODEL_WRAPPERS
from torch import Tensor, nn

from cae_seg.engine.batch import BatchSplit
from cae_seg.models.layers.stochastic import set_randomness


class MicroBatches:
    """`train_step` in micro-batches, with stochastic masks that depend on the sample alone.

    Attributes:
        iteration: iterations done; set by the training loop.
        wants_norm: whether `train_step` also returns `grad_norm`; set by the logging hook.
    """

    module: nn.Module
    iteration = 0
    wants_norm = False

    def set_batch(self, split: BatchSplit, rank: int, seed: int) -> None:
        """Tell how a batch is shared; needed once, before the first step.

        Args:
            split: of the global batch.
            rank: of this process.
            seed: of the run.
        """
        self._split, self._rank, self._seed = split, rank, seed

    def train_step(
        self, data: dict[str, Any], optim_wrapper: OptimWrapper
    ) -> dict[str, Tensor | float]:
        """Do one iteration on this rank's share of a batch.

        Returns:
            Means of the losses over the micro-batches, and `grad_norm` where it is wanted.
        """
        passes = range(self._split.accumulation)
        losses = [self._backward(data, part, optim_wrapper) for part in passes]
        self.average_gradients()
        means = {name: torch.stack([part[name] for part in losses]).mean() for name in losses[0]}
        if self.wants_norm:
            means["grad_norm"] = gradient_norm(optim_wrapper)
        optim_wrapper.step()
        optim_wrapper.zero_grad()
        return means

    def average_gradients(self) -> None:
        """Average the gradients over the ranks, where backward has not done so."""

    def _backward(
        self, data: dict[str, Any], part: int, optim_wrapper: OptimWrapper
    ) -> dict[str, Tensor]:
        """Add the gradients of one micro-batch; return its losses."""
        split, module = self._split, self.module
        first = part * split.micro_batch
        piece = {key: values[first : first + split.micro_batch] for key, values in data.items()}
        set_randomness(
            module,
            seed=self._seed,
            iteration=self.iteration,
            samples=split.micro_batch,
            first_sample=self._rank * split.batch_per_rank + first,
            total=split.global_batch,
        )
        with optim_wrapper.optim_context(self):
            inputs = module.data_preprocessor(piece, True)
            losses = self(**inputs, mode="loss")
        loss, values = module.parse_losses(losses)
        optim_wrapper.backward(optim_wrapper.scale_loss(loss))
        return {name: value.detach() for name, value in values.items()}


@MODEL_WRAPPERS.register_module()
class OrderedAverage(MicroBatches, nn.Module):
    """One rank, or several whose gradients are averaged after backward, always in one order.

    DistributedDataParallel refuses synchronised batch norm on the CPU, and regroups what it adds
    after the first iteration: a resumed run would round differently from an uninterrupted one.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self._trained = [p for p in module.parameters() if p.requires_grad]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model."""
        return self.module(*args, **kwargs)

    def val_step(self, data: Any) -> Any:
        """Predict a batch of the validation loop."""
        return self.module.val_step(data)

    def test_step(self, data: Any) -> Any:
        """Predict a batch of the test loop."""
        return self.module.test_step(data)

    def average_gradients(self) -> None:
        """Average every gradient that any rank has; a rank without it counts as zero."""
        if get_world_size() == 1:
            return
        device = self._trained[0].device
        present = torch.tensor([p.grad is not None for p in self._trained], device=device)
        present = present.to(torch.uint8)
        dist.all_reduce(present, dist.ReduceOp.MAX)
        taking_part = [p for p, has in zip(self._trained, present.tolist(), strict=True) if has]
        for parameter in taking_part:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        _average([parameter.grad for parameter in taking_part])


@MODEL_WRAPPERS.register_module()
class MicroBatchDDP(MicroBatches, MMDistributedDataParallel):
    """Several ranks on GPUs: DistributedDataParallel averages during backward."""


def ddp_options(find_unused: bool | None, accumulation: int) -> dict[str, bool]:
    """Return how `MicroBatchDDP` averages.

    Gradients are views of what is sent. Which parameters take part (blocks behind the last tap do
    not) is found out once, in the first iteration; where an iteration has several passes, or a
    config asks for it because layers are left out at random, before each backward.

    Args:
        find_unused: the config's `find_unused_parameters`, if it has one.
        accumulation: passes per iteration.
    """
    static = accumulation == 1 and not find_unused
    return {
        "broadcast_buffers": False,
        "gradient_as_bucket_view": True,
        "static_graph": static,
        "find_unused_parameters": not static and find_unused is not False,
    }


def gradient_norm(optimiser: OptimWrapper) -> float:
    """Return the Euclidean norm of all gradients, with the loss scale divided out."""
    gradients = [
        parameter.grad
        for group in optimiser.param_groups
        for parameter in group["params"]
        if parameter.grad is not None
    ]
    norms = torch._foreach_norm([gradient.float() for gradient in gradients])
    scaler = getattr(optimiser, "loss_scaler", None)
    scale = scaler.get_scale() if scaler is not None else 1.0
    return torch.stack(norms).norm().item() / scale


def _average(gradients: Sequence[Tensor]) -> None:
    flat = torch._utils._flatten_dense_tensors(gradients)
    dist.all_reduce(flat)
    flat /= get_world_size()
    parts = torch._utils._unflatten_dense_tensors(flat, gradients)
    torch._foreach_copy_(list(gradients), list(parts))

"""Batch normalisation over all ranks, on whatever device they run."""

import contextlib
from collections.abc import Iterator

import torch
import torch.distributed as dist
from mmengine.registry import MODELS
from torch import Tensor, nn

from cae_seg.errors import UserError

# Up to so many pixels a map is normalised in double precision, which costs nothing at that size.
# With few values per channel each is nearly determined by the others, and its gradient the small
# difference of large numbers: in single precision three digits of it are left.
_FEW_PIXELS = 4


class _SumOverRanks(torch.autograd.Function):
    """All-reduce by sum; the gradient of a sum over ranks is the sum of the ranks' gradients."""

    @staticmethod
    def forward(ctx, value: Tensor, group) -> Tensor:
        ctx.group = group
        total = value.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        total = gradient.contiguous().clone()
        dist.all_reduce(total, group=ctx.group)
        return total, None


@contextlib.contextmanager
def counted_together(model: nn.Module) -> Iterator[None]:
    """Count one batch in every `AnyDeviceSyncBN` of a model in train mode, by one kernel.

    Inside, each of them is to see one batch.
    """
    layers = [
        layer
        for layer in model.modules()
        if isinstance(layer, AnyDeviceSyncBN) and layer.training and layer.track_running_stats
    ]
    if layers:
        torch._foreach_add_([layer.num_batches_tracked for layer in layers], 1)
    for layer in layers:
        layer.counted = True
    try:
        yield
    finally:
        for layer in layers:
            layer.counted = False


@MODELS.register_module()
class AnyDeviceSyncBN(nn.SyncBatchNorm):
    """`nn.SyncBatchNorm` that also works on CPUs, with one process and with several.

    Parameters, buffers and results are those of `nn.SyncBatchNorm`; on CUDA it is that code. On
    the CPU torch refuses to synchronise: there the statistics are summed over the ranks (gloo) by
    a differentiable all-reduce, so that the gradients are those of the whole batch on one process.

    Raises:
        UserError: training with one value per channel in all (one image on one process through a
            1×1 pooling branch), of which there is no variance.
    """

    counted = False  # whether `counted_together` has counted the current batch already

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (N, C, …) per channel; the shape stays."""
        ranks = self._ranks()
        if self.training and ranks == 1 and input.numel() == input.size(1):
            raise UserError(
                "batch of one image: batch normalisation after 1×1 pooling needs two or more "
                "images in a forward pass; raise the images per GPU (or the number of GPUs)"
            )
        if self.training and ranks > 1:
            on_cpu = input.device.type == "cpu"
            return self._forward_ranks(input) if on_cpu else self._forward_torch(input)
        few = input[0, 0].numel() <= _FEW_PIXELS and input.dtype == torch.float32
        if self.training and self.track_running_stats and self.affine and few:
            return self._forward_few(input)
        return self._forward_alone(input)

    def _forward_torch(self, x: Tensor) -> Tensor:
        if self.counted:  # torch counts as well
            self.num_batches_tracked.sub_(1)
        return super().forward(x)

    def _ranks(self) -> int:
        if not (dist.is_available() and dist.is_initialized()):
            return 1
        return dist.get_world_size(self.process_group)

    def _momentum(self) -> float:
        """Count the batch; return the weight of its statistics in the running ones."""
        if not (self.training and self.track_running_stats):
            return 0.0 if self.momentum is None else self.momentum
        if not self.counted:
            self.num_batches_tracked.add_(1)
        return 1.0 / self.num_batches_tracked.item() if self.momentum is None else self.momentum

    def _forward_alone(self, x: Tensor) -> Tensor:
        tracked = not self.training or self.track_running_stats
        return nn.functional.batch_norm(
            x,
            self.running_mean if tracked else None,
            self.running_var if tracked else None,
            self.weight,
            self.bias,
            self.training or self.running_mean is None,
            self._momentum(),
            self.eps,
        )

    def _forward_few(self, x: Tensor) -> Tensor:
        mean, var = self.running_mean.double(), self.running_var.double()
        weight, bias, momentum = self.weight.double(), self.bias.double(), self._momentum()
        y = nn.functional.batch_norm(x.double(), mean, var, weight, bias, True, momentum, self.eps)
        self.running_mean.copy_(mean)
        self.running_var.copy_(var)
        return y.to(x.dtype)

    def _forward_ranks(self, x: Tensor) -> Tensor:
        if x.dtype != torch.float64 and x[0, 0].numel() <= _FEW_PIXELS:
            return self._forward_ranks(x.double()).to(x.dtype)
        axes = [axis for axis in range(x.dim()) if axis != 1]
        per_channel = [-1 if axis == 1 else 1 for axis in range(x.dim())]
        count = x.new_full((1,), x.numel() // x.size(1))
        summed = _SumOverRanks.apply(torch.cat([x.sum(axes), count]), self.process_group)
        count, mean = summed[-1].detach(), summed[:-1] / summed[-1].detach()
        centred = x - mean.view(per_channel)
        squares = _SumOverRanks.apply(centred.square().sum(axes), self.process_group)
        var = squares / count
        self._track(mean.detach(), squares.detach() / (count - 1))
        scale = torch.rsqrt(var + self.eps)
        if self.weight is None:
            return centred * scale.view(per_channel)
        scale = scale * self.weight
        return centred * scale.view(per_channel) + self.bias.view(per_channel)

    @torch.no_grad()
    def _track(self, mean: Tensor, unbiased_var: Tensor) -> None:
        momentum = self._momentum()
        if self.track_running_stats:
            self.running_mean.lerp_(mean.to(self.running_mean), momentum)
            self.running_var.lerp_(unbiased_var.to(self.running_var), momentum)


def adapt_batch_norm(model: nn.Module) -> nn.Module:
    """Let synchronised batch norm run on any device and any number of ranks, in place.

    Subclasses of torch's layer count too: mmcv registers one of its own as "SyncBN".
    """
    for module in model.modules():
        if isinstance(module, nn.SyncBatchNorm) and not isinstance(module, AnyDeviceSyncBN):
            module.__class__ = AnyDeviceSyncBN
    return model


class AnyDeviceSyncBNAct(AnyDeviceSyncBN):
    """`AnyDeviceSyncBN` followed by dropout and activation, in place of timm's `BatchNormAct2d`."""

    drop: nn.Module
    act: nn.Module

    def forward(self, input: Tensor) -> Tensor:
        """Normalise and activate (N, C, H, W); the shape stays."""
        return self.act(self.drop(super().forward(input)))


def synchronise_batch_norms(model: nn.Module) -> None:
    """Replace the 2-D batch norms within a model by synchronised ones, in place."""
    for parent in list(model.modules()):
        for name, norm in list(parent.named_children()):
            if isinstance(norm, nn.BatchNorm2d):
                setattr(parent, name, _synchronised(norm))


def _synchronised(norm: nn.BatchNorm2d) -> AnyDeviceSyncBN:
    with_activation = hasattr(norm, "act")
    kind = AnyDeviceSyncBNAct if with_activation else AnyDeviceSyncBN
    synchronised = kind(
        norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats
    )
    if with_activation:
        synchronised.drop, synchronised.act = norm.drop, norm.act
    for kind_of_state in ("_parameters", "_buffers"):
        getattr(synchronised, kind_of_state).update(getattr(norm, kind_of_state))
    return synchronised.train(norm.training)

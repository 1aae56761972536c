"""The processes of one run: who this one is, and how they agree.

Control values travel over gloo on the CPU, so that agreeing never waits for a GPU; gradients and
batch statistics travel over NCCL where there are GPUs.
"""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from cae_seg.errors import UserError

T = TypeVar("T")

COLLECTIVE_TIMEOUT = timedelta(hours=1)  # an evaluation or a slow disk keeps the others waiting


@dataclass(frozen=True)
class Ranks:
    """This process among those of the run.

    Args:
        rank: number of this process, from 0.
        world: number of processes.
        local: number of this process on its node.
        device: where this process computes.
    """

    rank: int
    world: int
    local: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this process writes the files and talks to the person."""
        return self.rank == 0

    def tell(self, value: Any) -> Any:
        """Return the first rank's `value` on every rank."""
        if self.world == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]

    def ask_first(self, action: Callable[[], T]) -> T:
        """Do `action` on the first rank alone and return its result everywhere.

        Raises:
            UserError: the action raised it; then on every rank.
        """
        if self.world == 1:
            return action()
        result, mistake = None, None
        if self.first:
            try:
                result = action()
            except UserError as error:
                mistake = str(error)
        result, mistake = self.tell((result, mistake))
        if mistake is not None:
            raise UserError(mistake)
        return result

    def largest(self, values: Sequence[float]) -> list[float]:
        """Return, for each value, the largest that any rank has."""
        return self._reduce(values, dist.ReduceOp.MAX)

    def mean(self, values: Sequence[float]) -> list[float]:
        """Return the means over the ranks."""
        return [value / self.world for value in self._reduce(values, dist.ReduceOp.SUM)]

    def add(self, counts: Tensor) -> Tensor:
        """Return the sum of an integer tensor over the ranks, on the CPU."""
        counts = counts.cpu()
        if self.world > 1:
            dist.all_reduce(counts)
        return counts

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors by their means over the ranks, always added in the same order."""
        flat = torch._utils._flatten_dense_tensors(tensors)
        dist.all_reduce(flat)
        flat /= self.world
        parts = torch._utils._unflatten_dense_tensors(flat, tensors)
        torch._foreach_copy_(list(tensors), list(parts))

    def share(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors by the first rank's."""
        for tensor in tensors:
            dist.broadcast(tensor, src=0)

    def gather(self, value: Any) -> list[Any]:
        """Return every rank's `value` on the first rank, in order of rank; elsewhere nothing."""
        if self.world == 1:
            return [value]
        box = [None] * self.world if self.first else None
        dist.gather_object(value, box, dst=0)
        return box or []

    def wait(self) -> None:
        """Wait until all ranks are here."""
        self.largest([0.0])

    def _reduce(self, values: Sequence[float], operation: Any) -> list[float]:
        if self.world == 1:
            return list(values)
        box = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(box, operation)
        return box.tolist()


@contextlib.contextmanager
def joined(kind: str) -> Iterator[Ranks]:
    """Join the processes that the environment names (torchrun's variables); alone without any.

    Args:
        kind: "cuda" or "cpu".
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    local = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cpu")
    if kind == "cuda":
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    if world == 1:
        yield Ranks(0, 1, 0, device)
        return
    backend = "cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=COLLECTIVE_TIMEOUT)
    yield Ranks(dist.get_rank(), world, local, device)
    # Not after an error: taking leave would wait for the ranks that know nothing of it.
    dist.destroy_process_group()

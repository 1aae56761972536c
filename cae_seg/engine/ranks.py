"""The processes of one run: how they join, and how they agree.

Rank, world size and collectives are those of `mmengine.dist`. Control values travel over gloo on
the CPU, so that agreeing never waits for a GPU; gradients and batch statistics travel over NCCL
where there are GPUs, by torch itself, because `mmengine.dist` knows one backend per group.
"""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import TypeVar

import torch
from mmengine.dist import all_reduce, broadcast_object_list, is_main_process

from cae_seg.errors import UserError

T = TypeVar("T")

COLLECTIVE_TIMEOUT = timedelta(hours=1)  # an evaluation or a slow disk keeps the others waiting


def run_on_main(action: Callable[[], T]) -> T:
    """Run `action` on the main process alone and return its result everywhere.

    Raises:
        UserError: the action raised it; then on every rank.
    """
    box: list = [None, None]
    if is_main_process():
        try:
            box[0] = action()
        except UserError as error:
            box[1] = str(error)
    broadcast_object_list(box)
    result, mistake = box
    if mistake is not None:
        raise UserError(mistake)
    return result


def all_reduce_max(values: Sequence[float]) -> list[float]:
    """Return, for each value, the largest that any rank has."""
    return _reduce(values, "max")


def all_reduce_mean(values: Sequence[float]) -> list[float]:
    """Return the means over the ranks."""
    return _reduce(values, "mean")


def _reduce(values: Sequence[float], operation: str) -> list[float]:
    box = torch.tensor(values, dtype=torch.float64)
    all_reduce(box, operation)
    return box.tolist()


@contextlib.contextmanager
def joined(kind: str) -> Iterator[torch.device]:
    """Join the processes that the environment names (torchrun's variables); alone without any.

    mmengine's `init_dist` selects a CUDA device even for gloo, and takes one backend alone.

    Args:
        kind: "cuda" or "cpu".

    Yields:
        Where this process computes.
    """
    device = torch.device("cpu")
    if kind == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield device
        return
    backend = "cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo"
    torch.distributed.init_process_group(backend, timeout=COLLECTIVE_TIMEOUT)
    yield device
    # Not after an error: taking leave would wait for the ranks that know nothing of it.
    torch.distributed.destroy_process_group()

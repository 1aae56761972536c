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
from mmengine.dist import all_reduce, broadcast_object_list, get_world_size, is_main_process

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


def all_reduce_mean(values: Sequence[float]) -> list[float]:
    """Return the means over the ranks."""
    box = torch.tensor(values, dtype=torch.float64)
    all_reduce(box, "mean")
    return box.tolist()


class Agreement:
    """What any rank wants, at points that all of them pass.

    With several ranks it is what they wanted at the point before, so that none waits for another.
    """

    def __init__(self) -> None:
        self._alone = get_world_size() == 1
        self._begun: Callable[[], list[float]] | None = None

    def reach(self, wishes: Sequence[float], *, now: bool) -> list[float]:
        """Return the largest of each wish.

        Args:
            wishes: of this rank, 0 for none; those of a point where others are granted are left
                out, as granting may change them.
            now: wait for the other ranks' wishes of this point; the same on all of them.
        """
        if self._alone:
            return list(wishes)
        heard = [0.0] * len(wishes) if self._begun is None else self._begun()
        self._begun = None
        if now:
            return _begin_max(wishes)()
        if not any(heard):
            self._begun = _begin_max(wishes)
        return heard


def _begin_max(values: Sequence[float]) -> Callable[[], list[float]]:
    """Start to find the largest of each value over the ranks; return what waits for them."""
    box = torch.tensor(values, dtype=torch.float64)
    work = torch.distributed.all_reduce(box, torch.distributed.ReduceOp.MAX, async_op=True)

    def finish() -> list[float]:
        work.wait()
        return box.tolist()

    return finish


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

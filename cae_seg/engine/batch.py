"""How the images of one iteration are shared: over ranks, and over time within a rank."""

from dataclasses import dataclass

from cae_seg.errors import UserError


@dataclass(frozen=True)
class BatchSplit:
    """The share of one rank in the global batch.

    Args:
        global_batch: images per iteration over all ranks.
        ranks: number of processes.
        micro_batch: images in one forward and backward pass.
    """

    global_batch: int
    ranks: int
    micro_batch: int

    @property
    def batch_per_rank(self) -> int:
        """Images per iteration of one rank."""
        return self.global_batch // self.ranks

    @property
    def accumulation(self) -> int:
        """Backward passes per step of the optimiser."""
        return self.batch_per_rank // self.micro_batch

    def as_dict(self) -> dict[str, int]:
        """Return the split for the run's metadata."""
        return {
            "global_batch": self.global_batch,
            "batch_per_rank": self.batch_per_rank,
            "micro_batch": self.micro_batch,
            "accumulation": self.accumulation,
            "ranks": self.ranks,
        }


def split_batch(global_batch: int, ranks: int, fitting: int | None) -> BatchSplit:
    """Share `global_batch` images over `ranks`, in the largest equal parts of at most `fitting`.

    Raises:
        UserError: the ranks cannot share evenly.
    """
    if global_batch % ranks:
        fits = ", ".join(str(n) for n in range(1, global_batch + 1) if global_batch % n == 0)
        raise UserError(
            f"{global_batch} images an iteration cannot be shared evenly by {ranks} "
            f"processes; use one of {fits}"
        )
    batch_per_rank = global_batch // ranks
    micro_batch = max(
        n
        for n in range(1, batch_per_rank + 1)
        if batch_per_rank % n == 0 and n <= (fitting or batch_per_rank)
    )
    if global_batch > 1 and micro_batch * ranks < 2:
        raise UserError(
            "--images-per-gpu 1: batch norm needs two images at once; allow 2, or use several GPUs"
        )
    return BatchSplit(global_batch, ranks, micro_batch)

"""How the images of one iteration are shared: over ranks, and over time within a rank."""

from dataclasses import dataclass

from cae_seg.errors import UserError


@dataclass(frozen=True)
class BatchSplit:
    """The share of one rank in the global batch.

    Args:
        total: images per iteration over all ranks.
        ranks: number of processes.
        micro: images in one forward and backward pass.
    """

    total: int
    ranks: int
    micro: int

    @property
    def per_rank(self) -> int:
        """Images per iteration of one rank."""
        return self.total // self.ranks

    @property
    def accumulation(self) -> int:
        """Backward passes per step of the optimiser."""
        return self.per_rank // self.micro

    def as_dict(self) -> dict[str, int]:
        """Return the split for the run's metadata."""
        return {
            "total": self.total,
            "per_rank": self.per_rank,
            "micro": self.micro,
            "accumulation": self.accumulation,
            "ranks": self.ranks,
        }


def split_batch(total: int, ranks: int, fitting: int | None) -> BatchSplit:
    """Share `total` images over `ranks`, in the largest equal parts of at most `fitting`.

    Raises:
        UserError: the ranks cannot share evenly.
    """
    if total % ranks:
        fits = ", ".join(str(n) for n in range(1, total + 1) if total % n == 0)
        raise UserError(
            f"{total} images an iteration cannot be shared evenly by {ranks} "
            f"processes; use one of {fits}"
        )
    per_rank = total // ranks
    micro = max(
        n for n in range(1, per_rank + 1) if per_rank % n == 0 and n <= (fitting or per_rank)
    )
    if total > 1 and micro * ranks < 2:
        raise UserError(
            "--images-per-gpu 1: batch norm needs two images at once; allow 2, or use several GPUs"
        )
    return BatchSplit(total, ranks, micro)

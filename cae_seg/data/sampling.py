"""Which sample comes when, and with which random numbers: a function of (seed, position) alone.

The training data is one endless stream of positions. Iteration i takes positions
16·i … 16·i + 15; rank r of R takes the r-th contiguous share of them. Position p is in epoch
p // N, shows image `permutation(seed, epoch)[p % N]` and is augmented by generators seeded from
(seed, p). So neither the number of workers nor that of ranks changes what a position shows, and a
run resumes at iteration 150 000 without replaying anything.
"""

import contextlib
import functools
import itertools
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
from mmengine.dist import get_dist_info
from mmengine.registry import DATA_SAMPLERS
from mmseg.registry import DATASETS
from torch.utils.data import Dataset, Sampler

from cae_seg.errors import UserError

# Keep the streams of random numbers apart that are drawn from one seed.
_ORDER, _AUGMENTATION = 0, 1


@functools.lru_cache(maxsize=2)
def permutation(seed: int, epoch: int, size: int) -> np.ndarray:
    """Return the order of the `size` images in one epoch, as (size,) int64."""
    order = np.random.default_rng([_ORDER, seed, epoch]).permutation(size)
    order.flags.writeable = False
    return order


@contextlib.contextmanager
def seeded_generators(seed: int, position: int) -> Iterator[None]:
    """Seed NumPy's and Python's global generators for one sample, and put them back after it."""
    words = np.random.SeedSequence([_AUGMENTATION, seed, position]).generate_state(8)
    numpy_state, python_state = np.random.get_state(), random.getstate()
    np.random.seed(words[:4])
    random.seed(words[4:].tobytes())
    try:
        yield
    finally:
        np.random.set_state(numpy_state)
        random.setstate(python_state)


@DATASETS.register_module()
class SeededDataset(Dataset):
    """A data set addressed by position in the endless stream of training samples.

    Args:
        dataset: an mmsegmentation data set, or the dict to build one from.
        seed: the run's seed.
    """

    def __init__(self, dataset: dict | Any, seed: int = 0) -> None:
        self.dataset = DATASETS.build(dataset) if isinstance(dataset, dict) else dataset
        self.seed = int(seed)

    @property
    def metainfo(self) -> dict:
        """Class names and palette of the data set."""
        return self.dataset.metainfo

    def full_init(self) -> None:
        """Scan the files, where the data set was built lazily."""
        self.dataset.full_init()

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, position: int) -> dict:
        epoch, offset = divmod(int(position), len(self))
        index = int(permutation(self.seed, epoch, len(self))[offset])
        with seeded_generators(self.seed, position):
            return self.dataset[index]


@DATA_SAMPLERS.register_module()
class IterationSampler(Sampler[int]):
    """Endless positions of this rank, in contiguous shares of each iteration's batch.

    Args:
        dataset: a `SeededDataset`.
        total_batch_size: images an iteration over all ranks.
        seed: taken because mmengine hands one to every sampler; the order is the data set's.
        rank: this process; the running process group's unless given.
        world: number of processes; likewise.

    Raises:
        UserError: the batch cannot be shared evenly.
    """

    def __init__(
        self,
        dataset: SeededDataset,
        total_batch_size: int = 16,
        seed: int | None = None,
        rank: int | None = None,
        world: int | None = None,
    ) -> None:
        running_rank, running_world = get_dist_info()
        self.rank = running_rank if rank is None else rank
        self.world = running_world if world is None else world
        if total_batch_size % self.world:
            raise UserError(
                f"total_batch_size={total_batch_size}: cannot be shared evenly by {self.world} "
                "processes; use a number of GPUs that divides it"
            )
        self.dataset = dataset
        self.total = total_batch_size
        self.share = total_batch_size // self.world
        self._start = 0

    def skip(self, num_samples: int) -> None:
        """Begin after the first `num_samples` samples of this rank, counted from iteration 0."""
        if num_samples < 0:
            raise ValueError(f"cannot skip {num_samples} samples")
        self._start = num_samples

    def set_epoch(self, epoch: int) -> None:
        """Do nothing: a position knows its epoch."""

    def __iter__(self) -> Iterator[int]:
        for sample in itertools.count(self._start):
            iteration, place = divmod(sample, self.share)
            yield iteration * self.total + self.rank * self.share + place

    def __len__(self) -> int:
        return len(self.dataset)

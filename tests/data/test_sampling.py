import itertools
import random

import numpy as np
import pytest
import torch
from ade_tree import make_tree
from mmengine.dataset import pseudo_collate
from torch.utils.data import DataLoader

from cae_seg.data.sampling import IterationSampler, SeededDataset, permutation, seeded_generators
from cae_seg.data.transforms import TrainTransform  # noqa: F401  (registers it)
from cae_seg.errors import UserError


class Noisy:
    """A data set whose samples show their index and the random numbers they drew."""

    metainfo: dict = {}  # noqa: RUF012

    def __len__(self):
        return 10

    def __getitem__(self, index):
        return torch.tensor([index, np.random.rand(), random.random()], dtype=torch.float64)


def positions(count, **kwargs):
    sampler = IterationSampler(SeededDataset(Noisy(), seed=3), **kwargs)
    return list(itertools.islice(sampler, count))


def batches(count, workers=0, start=0, **kwargs):
    dataset = SeededDataset(Noisy(), seed=3)
    sampler = IterationSampler(dataset, total_batch_size=4, **kwargs)
    sampler.skip(start * sampler.share)
    loader = DataLoader(
        dataset, sampler.share, sampler=sampler, num_workers=workers, collate_fn=pseudo_collate
    )
    return [torch.stack(batch) for batch in itertools.islice(loader, count)]


def test_every_epoch_shows_every_image_once():
    dataset = SeededDataset(Noisy(), seed=1)
    epochs = [[int(dataset[10 * e + p][0]) for p in range(10)] for e in range(3)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1]


def test_ranks_share_each_iteration_contiguously():
    assert positions(32) == list(range(32))
    halves = [positions(16, rank=rank, world=2) for rank in (0, 1)]
    assert halves[0] == [*range(8), *range(16, 24)]
    assert halves[1] == [*range(8, 16), *range(24, 32)]


def test_two_ranks_see_together_what_one_sees():
    together = [
        torch.cat(pair)
        for pair in zip(batches(6, rank=0, world=2), batches(6, rank=1, world=2), strict=True)
    ]
    assert torch.equal(torch.stack(together), torch.stack(batches(6)))


def test_the_number_of_workers_changes_nothing():
    assert torch.equal(torch.stack(batches(5, workers=4)), torch.stack(batches(5)))


def test_a_resumed_stream_continues_where_it_was():
    assert torch.equal(torch.stack(batches(3, start=4)), torch.stack(batches(7)[4:]))


def test_a_late_iteration_is_reached_at_once():
    sampler = IterationSampler(SeededDataset(Noisy()), total_batch_size=16)
    sampler.skip(150_000 * 16)
    assert next(iter(sampler)) == 150_000 * 16


def test_another_seed_gives_another_stream():
    one, other = (SeededDataset(Noisy(), seed=seed) for seed in (1, 2))
    assert not torch.equal(one[0], other[0])
    assert not np.array_equal(permutation(1, 0, 100), permutation(2, 0, 100))


def test_the_callers_generators_are_left_alone():
    np.random.seed(0)
    random.seed(0)
    expected = np.random.rand(), random.random()
    np.random.seed(0)
    random.seed(0)
    with pytest.raises(KeyError), seeded_generators(7, 5):
        raise KeyError
    SeededDataset(Noisy())[3]
    assert (np.random.rand(), random.random()) == expected


def test_a_batch_that_cannot_be_shared_is_refused():
    with pytest.raises(UserError, match="3 processes"):
        positions(1, total_batch_size=16, rank=0, world=3)


def test_real_samples_do_not_depend_on_the_workers(tmp_path):
    root = make_tree(tmp_path)
    dataset = SeededDataset(
        {
            "type": "ADE20KDataset",
            "data_root": str(root),
            "data_prefix": {
                "img_path": "images/training",
                "seg_map_path": "annotations/training",
            },
            "pipeline": [{"type": "TrainTransform", "scale": (64, 16), "crop_size": (12, 12)}],
        },
        seed=5,
    )
    found = []
    for workers in (0, 4):
        sampler = IterationSampler(dataset, total_batch_size=8)
        loader = DataLoader(
            dataset, 4, sampler=sampler, num_workers=workers, collate_fn=pseudo_collate
        )
        batches = list(itertools.islice(loader, 6))
        found.append([image for batch in batches for image in batch["inputs"]])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    assert not torch.equal(found[0][0], found[0][3])

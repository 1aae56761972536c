"""A batch that crosses processes: the same values, one block of memory."""

import numpy as np
import pytest
import torch
from mmengine.dataset import pseudo_collate
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from torch.utils.data import DataLoader, Dataset

from cae_seg.data.handover import whole_batch


class Samples(Dataset):
    """Images and labels of several types and shapes, one of them no contiguous tensor."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> dict:
        generator = torch.Generator().manual_seed(index)
        image = torch.randint(0, 256, (4 + index, 5, 3), dtype=torch.uint8, generator=generator)
        sample = SegDataSample(metainfo={"img_path": f"{index}.jpg", "scale": np.float32(0.5)})
        label = torch.randint(0, 150, (1, 4 + index, 5), generator=generator)
        sample.gt_sem_seg = PixelData(data=label)
        weight = torch.rand((), generator=generator, dtype=torch.float64)
        return {"inputs": image.permute(2, 0, 1), "data_samples": sample, "weight": weight}


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_of_pseudo_collate(workers):
    stock = DataLoader(Samples(), 2, collate_fn=pseudo_collate)
    ours = DataLoader(Samples(), 2, collate_fn=whole_batch, num_workers=workers)
    for found, expected in zip(ours, stock, strict=True):
        assert list(found) == list(expected)
        for name in ("inputs", "weight"):
            assert all(map(torch.equal, found[name], expected[name]))
        for one, other in zip(found["data_samples"], expected["data_samples"], strict=True):
            assert torch.equal(one.gt_sem_seg.data, other.gt_sem_seg.data)
            assert one.metainfo == other.metainfo


def test_all_tensors_of_a_batch_come_in_one_block():
    def blocks(collate) -> int:
        (batch,) = DataLoader(Samples(), 6, collate_fn=collate, num_workers=1)
        tensors = [*batch["inputs"], *batch["weight"]]
        tensors += [sample.gt_sem_seg.data for sample in batch["data_samples"]]
        return len({tensor.untyped_storage().data_ptr() for tensor in tensors})

    assert blocks(whole_batch) == 1
    assert blocks(pseudo_collate) == 18


def test_a_batch_without_tensors_or_names_passes():
    assert whole_batch([(1, 2), (3, 4)]) == pseudo_collate([(1, 2), (3, 4)])
    loader = DataLoader([{"name": "a"}, {"name": "b"}], 2, collate_fn=whole_batch, num_workers=1)
    assert list(loader) == [{"name": ["a", "b"]}]

"""From samples to a batch: the same numbers on every way."""

import torch
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample

from cae_seg.data.batch import stage
from cae_seg.data.transforms import BatchPreprocessor

CPU = torch.device("cpu")
COLOURS = {"mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375], "bgr_to_rgb": True}


def batch(seed: int = 0, sizes: tuple[int, ...] = (8, 8)) -> dict:
    generator = torch.Generator().manual_seed(seed)
    images = [
        torch.randint(0, 256, (3, s, 8), generator=generator, dtype=torch.uint8) for s in sizes
    ]
    labels = [
        torch.randint(0, 150, (1, s, 8), generator=generator, dtype=torch.uint8) for s in sizes
    ]
    samples = [SegDataSample(gt_sem_seg=PixelData(data=label)) for label in labels]
    return {"inputs": images, "data_samples": samples}


def test_alike_samples_become_two_tensors():
    staged, plain = stage(batch(), CPU), batch()
    assert torch.equal(staged["inputs"], torch.stack(plain["inputs"]))
    labels = [sample.gt_sem_seg.data for sample in staged["data_samples"]]
    assert labels[0]._base is labels[1]._base
    for label, sample in zip(labels, plain["data_samples"], strict=True):
        assert torch.equal(label, sample.gt_sem_seg.data)


def test_samples_of_several_sizes_stay_apart():
    staged = stage(batch(sizes=(8, 6)), CPU)
    assert [tuple(image.shape) for image in staged["inputs"]] == [(3, 8, 8), (3, 6, 8)]


def test_one_expression_gives_the_bits_of_image_by_image():
    preprocessor = BatchPreprocessor(**COLOURS, size=(8, 8))
    expected = preprocessor(batch(), training=True)
    staged = stage(batch(), CPU)
    assert torch.equal(preprocessor._normalise_at_once(staged["inputs"]), expected["inputs"])
    found = preprocessor(staged, training=True)
    assert torch.equal(found["inputs"], expected["inputs"])
    for ours, theirs in zip(found["data_samples"], expected["data_samples"], strict=True):
        assert ours.gt_sem_seg.data.dtype == torch.int64
        assert torch.equal(ours.gt_sem_seg.data, theirs.gt_sem_seg.data)

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from fidelity import record
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample

from cae_seg.data.transforms import BatchPreprocessor, TrainTransform, distort, reduce_zero_label

init_default_scope("mmseg")  # as the configs say

GOLDEN = Path(__file__).parents[1] / "golden" / "pipeline"
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
TEST_PIPELINE = [
    {"type": "LoadImageFromFile"},
    {"type": "Resize", "scale": (2048, 512), "keep_ratio": True},
    {"type": "LoadAnnotations"},
    {"type": "PackSegInputs"},
]


@pytest.fixture(scope="module")
def golden():
    return np.load(GOLDEN / "pipeline.npz")


def pair(number, folder=GOLDEN):
    return {
        "img_path": str(folder / f"img{number}.png"),
        "seg_map_path": str(folder / f"seg{number}.png"),
        "reduce_zero_label": True,
        "label_map": None,
        "seg_fields": [],
    }


def preprocessor(size=(128, 128), kind="BatchPreprocessor"):
    return MODELS.build(
        {"type": kind, "mean": MEAN, "std": STD, "bgr_to_rgb": True, "size": size, "pad_val": 0}
    )


def grey_levels(one, other):
    return np.abs(np.asarray(one).astype(float) - np.asarray(other).astype(float)).max()


@pytest.mark.parametrize("number", [0, 1, 2])
def test_test_transforms(golden, number):
    sample = Compose(TEST_PIPELINE)(pair(number))
    inputs = preprocessor()(pseudo_collate([sample]))["inputs"][0]
    measured = grey_levels(inputs[:, ::5, ::5], golden[f"test_img{number}_step5"]) * max(STD)
    record("test transforms: normalised image, grey levels", measured, 1)
    label = sample["data_samples"].gt_sem_seg.data[0]
    record("label reduction", grey_levels(label, golden[f"seg_reduced{number}"]), 0)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_label_reduction_resize_and_flip(golden, number):
    raw = cv2.imread(str(GOLDEN / f"seg{number}.png"), cv2.IMREAD_UNCHANGED)
    before = raw.copy()
    reduced = reduce_zero_label(raw)
    assert np.array_equal(raw, before)
    record("label reduction", grey_levels(reduced, golden[f"seg_reduced{number}"]), 0)
    expected = golden[f"seg_resized{number}"]
    resized = cv2.resize(reduced, expected.shape[::-1], interpolation=cv2.INTER_NEAREST)
    record("annotation resize", grey_levels(resized, expected), 0)
    record("flip", grey_levels(cv2.flip(resized, 1), golden[f"seg_flip{number}"]), 0)


def test_resize(golden):
    image = cv2.imread(str(GOLDEN / "img2.png"))
    resized = cv2.resize(image, golden["seg_resized2"].shape[::-1])
    record("image resize, grey levels", grey_levels(resized[:, ::2], golden["resized2"]), 1)


def test_pad_comes_after_normalisation(golden):
    label = reduce_zero_label(cv2.imread(str(GOLDEN / "seg2.png"), cv2.IMREAD_UNCHANGED))
    valid = int(golden["pad_img"].any(axis=(1, 2)).sum()), int(golden["pad_img"].any((0, 2)).sum())
    image = cv2.imread(str(GOLDEN / "img2.png"))[: valid[0], : valid[1]]
    label = label[: valid[0], : valid[1]]
    assert np.array_equal(image, golden["pad_img"][: valid[0], : valid[1]])
    sample = SegDataSample(gt_sem_seg=PixelData(data=torch.from_numpy(label)[None]))
    inputs = torch.from_numpy(image.transpose(2, 0, 1).copy())
    batch = preprocessor()({"inputs": [inputs], "data_samples": [sample]}, training=True)
    padded = batch["inputs"][0]
    assert padded.shape == (3, 128, 128)
    assert not padded[:, valid[0] :].any()
    assert not padded[:, :, valid[1] :].any()
    labels = batch["data_samples"][0].gt_sem_seg.data[0]
    record("pad", grey_levels(labels, golden["pad_seg"]), 0)


@pytest.mark.parametrize("seed", range(12))
def test_photometric_distortion(golden, seed):
    source = golden["pmd_src"].copy()
    np.random.seed(seed)
    measured = grey_levels(distort(source)[::2], golden[f"pmd_seed{seed}"])
    record("photometric distortion for given draws, grey levels", measured, 1)
    assert np.array_equal(source, golden["pmd_src"])


def test_random_crop(golden):
    transform = TrainTransform(crop_size=(64, 64))
    label = golden["seg_reduced1"]
    for seed, expected in enumerate(golden["randomcrop_seed0_19_yx"]):
        np.random.seed(seed)
        size = label.shape[::-1]
        window, crop = transform._choose_crop(label, size, np.arange(256, dtype=np.uint8))
        assert np.array_equal(crop, label[window])
        record("random crop for given draws", grey_levels([s.start for s in window], expected), 0)


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("seed", range(6))
def test_whole_train_pipeline(golden, seed, fast):
    transform = TrainTransform(scale=(512, 128), crop_size=(128, 128), fast=fast)
    np.random.seed(seed)
    sample = transform(pair(seed % 3))
    batch = preprocessor()(pseudo_collate([sample]), training=True)
    image = batch["inputs"][0].permute(1, 2, 0).numpy() * STD + MEAN
    step = 3 if seed in (3, 4) else 2  # as the golden file keeps it
    label = batch["data_samples"][0].gt_sem_seg.data.numpy()
    measured = grey_levels(image[::step, ::step].round(), golden[f"train_seed{seed}_rgb"])
    record("train pipeline for given draws, grey levels", measured, 1)
    record("train pipeline, labels", grey_levels(label, golden[f"train_seed{seed}_seg"]), 0)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """JPEG pairs of awkward sizes: large, small, wide, and one class nearly everywhere."""
    folder = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(0)
    for number, (height, width) in enumerate([(150, 200), (300, 211), (60, 260), (97, 97)]):
        coarse = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        image = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
        values = rng.integers(0, 151, (4, 5), dtype=np.uint8)
        if number == 3:
            values[:] = 7
            values[0, 0] = 9
        label = cv2.resize(values, (width, height), interpolation=cv2.INTER_NEAREST)
        cv2.imwrite(str(folder / f"img{number}.jpg"), image)
        cv2.imwrite(str(folder / f"seg{number}.png"), label)
    return folder


@pytest.mark.parametrize("seed", range(40))
def test_quick_path_gives_the_stock_samples(photographs, seed):
    record_ = pair(seed % 4, photographs)
    record_["img_path"] = record_["img_path"].replace(".png", ".jpg")
    samples, states = [], []
    for fast in (True, False):
        np.random.seed(seed)
        transform = TrainTransform(scale=(512, 128), crop_size=(96, 96), fast=fast)
        samples.append(transform({**record_, "seg_fields": []}))
        states.append(np.random.random_sample())
    assert states[0] == states[1]
    ours, stock = samples
    assert torch.equal(ours["inputs"], stock["inputs"])
    assert torch.equal(
        ours["data_samples"].gt_sem_seg.data.long(), stock["data_samples"].gt_sem_seg.data
    )
    ours, stock = (sample["data_samples"].metainfo for sample in samples)
    assert {key: ours[key] for key in stock} == stock


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("size", [(128, 128), (160, 128)])
def test_preprocessor_gives_the_stock_batch(size, training):
    def batch():  # the second seed draws a sample smaller than the crop, for training to pad
        transform = TrainTransform(scale=(512, 128), crop_size=(128, 128))
        samples = []
        for seed in (0, 7 if training else 0):
            np.random.seed(seed)
            samples.append(transform(pair(0)))
        return pseudo_collate(samples)

    ours = preprocessor(size)(batch(), training)
    stock = preprocessor(size, "SegDataPreProcessor")(batch(), training)
    assert torch.equal(ours["inputs"], stock["inputs"])
    for one, other in zip(ours["data_samples"], stock["data_samples"], strict=True):
        assert one.gt_sem_seg.data.dtype == torch.int64
        assert torch.equal(one.gt_sem_seg.data, other.gt_sem_seg.data.long())
        assert one.metainfo["img_shape"] == tuple(other.metainfo["img_shape"])


def test_a_file_that_changed_under_us_is_named(tmp_path):
    (tmp_path / "img0.png").write_bytes(b"not an image")
    with pytest.raises(ValueError, match=r"img0\.png"):
        TrainTransform()(pair(0, tmp_path))


def test_preprocessor_leaves_images_of_other_kinds_to_the_stock_one():
    plain = BatchPreprocessor()
    inputs = [torch.ones(3, 8, 8), torch.ones(3, 8, 8)]
    assert torch.equal(plain({"inputs": inputs})["inputs"], torch.ones(2, 3, 8, 8))

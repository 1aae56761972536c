import zipfile

import numpy as np
import pytest
import torch
from mmengine.config import Config

from cae_seg.data.demo import IMAGES, make_demo
from cae_seg.data.demo_checkpoints import CAE_CONFIG, SWIN_CONFIG
from cae_seg.data.metric import confusion, scores
from cae_seg.data.prepare.prepare import prepare
from cae_seg.data.transforms import reduce_zero_label

CHECKPOINTS = {
    "cae_tiny_300e": CAE_CONFIG,
    "cae_tiny_1600e": CAE_CONFIG,
    "swin_demo": SWIN_CONFIG,
}


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    make_demo(folder / "ade.zip", folder / "checkpoints", seed=0)
    return folder


@pytest.fixture(scope="module")
def prepared(demo):
    source, root = str(demo / "ade.zip"), demo / "data"
    return prepare(source, root, root / "manifest.json", expected=IMAGES)


@pytest.fixture(scope="module")
def labels(prepared):
    from PIL import Image

    folder = prepared.root / "annotations"
    return {
        split: [np.asarray(Image.open(path)) for path in sorted((folder / split).iterdir())]
        for split in IMAGES
    }


def test_the_same_seed_gives_the_same_bytes(demo, tmp_path):
    make_demo(tmp_path / "ade.zip", tmp_path / "checkpoints", seed=0)
    for name in ("ade.zip", *(f"checkpoints/{name}.pth" for name in CHECKPOINTS)):
        assert (tmp_path / name).read_bytes() == (demo / name).read_bytes()
    make_demo(tmp_path / "other.zip", tmp_path / "checkpoints", seed=1)
    assert (tmp_path / "other.zip").read_bytes() != (demo / "ade.zip").read_bytes()


def test_the_archive_is_small_and_laid_out_as_the_real_one(demo):
    assert (demo / "ade.zip").stat().st_size < 2e6
    with zipfile.ZipFile(demo / "ade.zip") as content:
        names = set(content.namelist())
        classes = content.read("ADEChallengeData2016/objectInfo150.txt").decode().splitlines()
    for name in (
        "images/training/ADE_train_00000001.jpg",
        "annotations/validation/ADE_val_00000001.png",
        "sceneCategories.txt",
    ):
        assert f"ADEChallengeData2016/{name}" in names
    assert classes[0] == "Idx\tRatio\tTrain\tVal\tStuff\tName"
    assert classes[150].endswith("\tflag")


def test_sizes_vary_and_one_is_over_four_to_one(labels):
    shapes = [label.shape for split in IMAGES for label in labels[split]]
    assert len(set(shapes)) > 20
    assert any(wide > 4 * high for high, wide in shapes)
    assert any(high > wide for high, wide in shapes)


@pytest.mark.parametrize("split", list(IMAGES))
def test_some_classes_occur_and_some_pixels_are_ignored(labels, split):
    values = set(np.unique(np.concatenate([label.ravel() for label in labels[split]])))
    assert 0 in values
    assert 8 < len(values) < 20


def test_no_constant_prediction_scores(labels):
    best = 0.0
    for number in range(150):
        counts = sum(
            confusion(torch.full(label.shape, number), torch.from_numpy(reduce_zero_label(label)))
            for label in labels["validation"]
        )
        best = max(best, scores(counts)["mIoU"])
    assert best < 5


def test_checkpoints_have_the_released_layout_at_a_smaller_grid(demo):
    backbone = Config.fromfile(CAE_CONFIG).model.backbone
    for name, epochs in (("cae_tiny_300e.pth", 300), ("cae_tiny_1600e.pth", 1600)):
        content = torch.load(demo / "checkpoints" / name, weights_only=True)
        assert content["epoch"] == epochs - 1
        tensors = content["model"]
        tokens = tensors["encoder.pos_embed"].shape[1]
        assert tokens - 1 < (backbone.img_size // backbone.patch_size) ** 2
        assert "mask_token" in tensors
        assert any(key.startswith("pretext_neck.") for key in tensors)
        assert not any("relative_position" in key for key in tensors)


def test_checkpoints_fill_the_demos_backbones(demo):
    from mmseg.registry import MODELS

    import cae_seg.registration  # noqa: F401
    from cae_seg.models.pretrained.load import load_pretrained

    for name, config in CHECKPOINTS.items():
        model = MODELS.build(dict(Config.fromfile(config).model.backbone))
        assert load_pretrained(model, demo / "checkpoints" / f"{name}.pth")

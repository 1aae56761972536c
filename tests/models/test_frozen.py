"""What several models over the same frozen backbone share."""

import pytest
import torch
from mmseg.registry import MODELS

import cae_seg.registration  # noqa: F401
from cae_seg.models.backbones.frozen import Frozen

# Model and taps: blocks of plain transformers, stages of hierarchical ones; the last one in all.
MODELS_AND_TAPS = {
    "vit_tiny_patch16_224": ((11,), (8, 9, 10, 11), (3, 5, 7, 11)),
    "convnext_atto": ((3,), (0, 1, 2, 3)),
    "swin_tiny_patch4_window7_224": ((3,), (1, 3)),
    "resnet18": ((4,), (1, 2, 3, 4)),
}


def frozen(name: str, taps: tuple[int, ...] | None, **changes) -> Frozen:
    torch.manual_seed(changes.pop("seed", 0))
    backbone = {"type": "TimmModel", "model_name": name, "img_size": 64, "out_indices": taps}
    return MODELS.build({"type": "Frozen", "backbone": backbone | changes}).train()


@pytest.fixture
def passes(monkeypatch):
    """The taps of each pass of a backbone."""
    counted = []
    compute = Frozen.compute

    def counting(self, x, taps=None):
        counted.append(taps)
        return compute(self, x, taps)

    monkeypatch.setattr(Frozen, "compute", counting)
    return counted


@pytest.mark.parametrize("name", MODELS_AND_TAPS)
def test_one_pass_gives_each_model_the_maps_that_it_computes_alone(name, passes):
    x = torch.randn(2, 3, 64, 64)
    models = [frozen(name, taps) for taps in MODELS_AND_TAPS[name]]
    alone = [model(x) for model in models]
    passes.clear()
    for model in models[1:]:
        assert model.share(models[0])
    for model, expected in zip(models, alone, strict=True):
        maps = model(x)
        assert len(maps) == len(expected)
        assert all(torch.equal(*pair) for pair in zip(maps, expected, strict=True))
    assert passes == [sorted(set().union(*MODELS_AND_TAPS[name]))]


@pytest.mark.parametrize(
    ("name", "taps", "changes"),
    [
        ("vit_tiny_patch16_224", (3, 7), {}),
        ("vit_tiny_patch16_224", (11,), {"seed": 1}),
        ("vit_tiny_patch16_224", (11,), {"norm": False}),
        ("vit_small_patch16_224", (11,), {}),
    ],
    ids=["another last tap", "other weights", "another norm", "another model"],
)
def test_nothing_is_shared_with_another_backbone(name, taps, changes):
    model, other = frozen("vit_tiny_patch16_224", (11,)), frozen(name, taps, **changes)
    assert not model.share(other)
    assert model.maps is other.maps is None

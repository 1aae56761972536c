"""The identity of a run: what can change its numbers belongs to it, and nothing else does."""

from pathlib import Path
from typing import Any

import pytest

from cae_seg.engine.config import load_config
from cae_seg.engine.identity import identity_of
from cae_seg.engine.job import Knobs

BASE = "upernet_cae_base_12_512_slide_160k_ade20k"
DECIDED = {
    "seed": 0,
    "precision": "fp32",
    "deterministic": False,
    "global_batch": 16,
    "accelerations": ["segmentor"],
    "data": "abc",
}


def identity(
    options: dict[str, Any] | None = None, knobs: Knobs | None = None, **decided: Any
) -> str:
    config = load_config(BASE, options, knobs)
    return identity_of(config, DECIDED | decided, lambda path: path.read_text())


@pytest.mark.parametrize(
    ("ending", "known"),
    [
        ("base_12_512_slide_160k_ade20k_pt_1e-4", "cc92e0babd727f16"),
        ("base_12_512_slide_160k_ade20k_pt_2e-4", "a136d03ae21cfe0d"),
        ("base_12_512_slide_160k_ade20k_pt_3e-4", "e60d4bb4987e6ec5"),
        ("base_12_512_slide_160k_ade20k_pt_4e-4", "1955f70bd552d12a"),
        ("large_24_512_slide_160k_ade20k_pt_decay095_4e-5_dp015", "8d90ee40662ad738"),
    ],
)
def test_identity_of_a_published_recipe_is_the_same_in_every_version(ending, known):
    """A finished run is known by it: with another one it would be trained again."""
    config = load_config(f"upernet_cae_{ending}")
    assert identity_of(config, DECIDED, lambda path: path.read_text())[:16] == known


@pytest.mark.parametrize(
    ("options", "knobs", "decided"),
    [
        ({"model.backbone.drop_path_rate": 0.2}, None, {}),
        ({"optim_wrapper.optimizer.weight_decay": 0.1}, None, {}),
        ({"val_dataloader.dataset.pipeline.1.scale": (1024, 256)}, None, {}),
        ({"val_evaluator.iou_metrics": ["mDice"]}, None, {}),
        ({"default_hooks.ema.type": "EMAHook"}, None, {}),
        ({"evaluation_precision": "bf16"}, None, {}),
        ({}, Knobs(iterations=100), {}),
        ({}, Knobs(crop_size=(64, 64)), {}),
        ({}, None, {"seed": 1}),
        ({}, None, {"deterministic": True}),
        ({}, None, {"precision": "bf16"}),
        ({}, None, {"accelerations": []}),
        ({}, None, {"global_batch": 8}),
        ({}, None, {"data": "abd"}),
    ],
)
def test_what_changes_numbers_changes_the_identity(options, knobs, decided):
    assert identity(options, knobs, **decided) != identity()


@pytest.mark.parametrize(
    "options",
    [
        {"default_hooks.logger.interval": 7},
        {"default_hooks.checkpoint.interval": 7},
        {"log_level": "ERROR"},
        {"train_dataloader.dataset.data_root": "elsewhere"},
    ],
)
def test_what_only_watches_or_moves_a_run_does_not(options):
    assert identity(options) == identity()


def test_checkpoints_count_by_content_wherever_they_are_nested(tmp_path: Path):
    for name, content in (("a", "x"), ("b", "x"), ("c", "y")):
        (tmp_path / name).write_text(content)

    def nested(name: str) -> str:
        checkpoint = {"type": "Pretrained", "checkpoint": str(tmp_path / name)}
        return identity({"model.decode_head.init_cfg": checkpoint})

    assert nested("a") == nested("b") != nested("c")

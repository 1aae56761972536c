"""The shipped config files build the published models, optimisers and schedules."""

import gzip
import json
from pathlib import Path

import pytest
import torch
from fidelity import record
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import PARAM_SCHEDULERS, init_default_scope
from mmengine.runner import load_checkpoint

from cae_seg.engine.build import build_model
from cae_seg.models.layers.stochastic import SampleDropPath

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs_local" / "cae" / "upernet"
GOLDEN = ROOT / "tests" / "golden"
GROUPS = json.loads(gzip.decompress((GOLDEN / "optim_groups.json.gz").read_bytes()))
BASE, LARGE = GROUPS
PUBLISHED = [
    *(
        f"upernet_cae_base_12_512_slide_160k_ade20k_pt_{lr}"
        for lr in ("1e-4", "2e-4", "3e-4", "4e-4")
    ),
    LARGE,
]


def config(stem: str) -> Config:
    init_default_scope("mmseg")
    return Config.fromfile(CONFIGS / f"{stem}.py")


def build(stem: str, device: str = "meta") -> torch.nn.Module:
    """Build the segmentor of a config; on the meta device it costs nothing."""
    with torch.device(device):
        return build_model(config(stem), 0, start=False)


def test_the_published_configs_are_here_by_name():
    assert {path.stem for path in CONFIGS.glob("*.py")} >= set(PUBLISHED)


@pytest.mark.parametrize("stem", PUBLISHED)
def test_full_size_model_has_the_published_parameters(stem):
    known = GROUPS[LARGE if stem == LARGE else BASE]
    model = build(stem)
    record("number of parameters", abs(_count(model) - known["parameters"]), 0)
    record("number of trained parameters", abs(_count(model, True) - known["trainable"]), 0)
    shapes = {name: list(t.shape) for name, t in model.state_dict().items()}
    assert shapes == known["shapes"]
    assert {n for n, p in model.named_parameters() if not p.requires_grad} == set(
        known["not_in_optimizer"]
    )


def _count(model: torch.nn.Module, trained: bool = False) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trained)


@pytest.mark.parametrize("stem", [BASE, LARGE], ids=["base", "large"])
def test_learning_rate_and_weight_decay_of_every_parameter(stem):
    known = GROUPS[stem]
    groups = build_optim_wrapper(build(stem), config(stem).optim_wrapper).optimizer.param_groups
    assert len(groups) == known["groups"]
    ours = {n: g for g in groups for n in g["param_names"]}
    assert list(ours) != []
    assert set(ours) == set(known["optimised"])
    for name, (lr, decay, group) in known["optimised"].items():
        assert ours[name]["group_name"] == group
        record("learning rates", abs(ours[name]["lr"] - lr) / lr, 1e-9)
        record("weight decay", abs(ours[name]["weight_decay"] - decay), 0.0)
        assert ours[name]["betas"] == (0.9, 0.999)
        assert ours[name]["eps"] == 1e-8


@pytest.mark.parametrize("stem", PUBLISHED)
def test_learning_rate_is_the_one_in_the_name(stem):
    assert f"{config(stem).optim_wrapper.optimizer.lr:.0e}".replace("e-0", "e-") in stem


@pytest.mark.parametrize("stem", [BASE, LARGE], ids=["base", "large"])
def test_drop_path_rates_are_the_published_ones(stem):
    for block, rate in zip(build(stem).backbone.blocks, GROUPS[stem]["drop_path"], strict=True):
        ours = [m.drop_prob for m in block.modules() if isinstance(m, SampleDropPath)]
        record("drop-path rates", max(abs(r - rate) for r in ours or [0.0]), 1e-8)


def test_learning_rate_schedule_is_the_published_one():
    multipliers = json.loads((GOLDEN / "lr_schedule.json").read_text())
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedulers = [
        PARAM_SCHEDULERS.build({**entry, "optimizer": optimizer})
        for entry in config(BASE).param_scheduler
    ]
    wanted = {int(iteration): value for iteration, value in multipliers.items()}
    for iteration in range(max(wanted) + 1):
        if iteration in wanted:
            error = abs(optimizer.param_groups[0]["lr"] - wanted[iteration]) / wanted[iteration]
            record("learning-rate multiplier", error, 1e-9)
        for scheduler in schedulers:
            scheduler.step()


def fine_tuned(path: Path, shapes: dict[str, list[int]]) -> Path:
    """Write a checkpoint as mmsegmentation 0.11 does, all its weights one half."""
    state = {name: torch.tensor(0.5).expand(shape) for name, shape in shapes.items()}
    file = {"meta": {"iter": 160_000}, "state_dict": state, "optimizer": {}, "amp": {}}
    torch.save(file, path)
    return path


@pytest.mark.parametrize("stem", [BASE, LARGE], ids=["base", "large"])
def test_a_published_fine_tuned_checkpoint_loads_strictly(stem, tmp_path):
    shapes = GROUPS[stem]["shapes"]
    assert any(name.endswith("relative_position_index") for name in shapes)
    path = fine_tuned(tmp_path / "iter_160000.pth", shapes)
    load_checkpoint(build(stem), str(path), map_location="meta", strict=True)


def test_a_fine_tuned_checkpoint_reaches_the_weights(tmp_path):
    model = build("upernet_cae_tiny_demo", "cpu")
    shapes = {name: list(t.shape) for name, t in model.state_dict().items()}
    path = fine_tuned(tmp_path / "iter_300.pth", shapes)
    load_checkpoint(model, str(path), map_location="cpu", strict=True)
    assert all(p.eq(0.5).all() for p in model.parameters())


def test_evaluations_and_checkpoints_fall_where_published():
    for stem, interval in ((BASE, 8_000), (LARGE, 32_000)):
        cfg = config(stem)
        assert cfg.train_cfg.val_interval == 16_000
        assert cfg.default_hooks.checkpoint.interval == interval
        assert cfg.auto_scale_lr.base_batch_size == 16
        assert cfg.train_cfg.max_iters == cfg.param_scheduler[-1].end - 1 == 160_000


def test_demo_config_is_the_same_recipe_made_small():
    demo, base = config("upernet_cae_tiny_demo"), config(BASE)
    assert demo.model.decode_head.num_classes == 150
    assert demo.model.keys() == base.model.keys()
    assert demo.model.backbone.keys() == base.model.backbone.keys()
    assert _count(build("upernet_cae_tiny_demo")) < 1_000_000

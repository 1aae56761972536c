"""The knobs --iterations, --batch-size and --crop-size set every place that depends on them."""

import pytest
from mmengine.config import Config

from cae_seg.engine.config import load_config
from cae_seg.engine.job import Knobs
from cae_seg.errors import UserError

BASE = "upernet_cae_base_12_512_slide_160k_ade20k"
BEIT = "mmseg::beit/beit-base_upernet_8xb2-160k_ade20k-640x640.py"
VIT = "mmseg::vit/vit_deit-s16_upernet_8xb2-160k_ade20k-512x512.py"
SEGFORMER = "mmseg::segformer/segformer_mit-b0_8xb1-160k_cityscapes-1024x1024.py"
DDRNET = "mmseg::ddrnet/ddrnet_23-slim_in1k-pre_2xb6-120k_cityscapes-1024x1024.py"


def schedule(config: Config) -> list[tuple[int, int]]:
    return [(part.begin, part.end) for part in config.param_scheduler]


def crops(config: Config) -> list:
    return [step.crop_size for step in pipeline(config) if "crop_size" in step]


def pipeline(config: Config) -> list[dict]:
    dataset = config.train_dataloader.dataset
    while "pipeline" not in dataset:
        dataset = dataset.dataset
    return dataset.pipeline


def test_without_knobs_nothing_changes():
    config = load_config(BASE)
    assert config.train_cfg.max_iters == 160_000
    assert schedule(config) == [(0, 1_501), (0, 160_001)]
    assert "knobs" not in config


def test_iterations_move_schedules_and_warm_up_and_cap_intervals():
    config = load_config(BASE, knobs=Knobs(iterations=1_600))
    assert config.train_cfg.max_iters == 1_600
    assert schedule(config) == [(0, 15), (0, 1_601)]
    assert config.train_cfg.val_interval == 1_600
    assert config.default_hooks.checkpoint.interval == 1_600
    assert config.knobs == {"iterations": 1_600}
    longer = load_config(BASE, knobs=Knobs(iterations=320_000))
    assert schedule(longer) == [(0, 3_002), (0, 320_001)]
    assert longer.train_cfg.val_interval == 16_000


@pytest.mark.parametrize("iterations", [1, 2, 3, 40_000])
@pytest.mark.parametrize("name", [BASE, VIT, SEGFORMER])
def test_schedules_stay_whole_at_any_length(name, iterations):
    before, after = load_config(name), load_config(name, knobs=Knobs(iterations=iterations))
    assert len(schedule(before)) == len(schedule(after))
    assert all(begin < end for begin, end in schedule(after))
    offset = schedule(before)[-1][1] - before.train_cfg.max_iters
    if iterations > 1:
        assert schedule(after)[-1][1] == iterations + offset


def test_an_option_takes_precedence_over_the_places_that_a_knob_sets():
    config = load_config(
        BASE,
        {"train_cfg.val_interval": 7, "model.backbone.img_size": 128},
        Knobs(50, None, (64, 64)),
    )
    assert config.train_cfg.val_interval == 7
    assert config.model.backbone.img_size == 128
    assert config.model.data_preprocessor.size == (64, 64)


def test_batch_size_is_the_images_of_an_iteration_over_all_gpus():
    assert load_config(VIT).total_batch_size == 16
    assert load_config(VIT, knobs=Knobs(batch_size=6)).total_batch_size == 6


def test_crop_size_sets_crops_padding_position_grids_and_windows():
    config = load_config(BASE, knobs=Knobs(crop_size=(256, 256)))
    assert crops(config) == [(256, 256)]
    assert config.model.data_preprocessor.size == (256, 256)
    assert config.model.backbone.img_size == 256
    assert config.model.test_cfg.crop_size == (256, 256)
    assert config.model.test_cfg.stride == (170, 170)
    assert config.crop_size == (256, 256)
    assert not any(512 in (value if isinstance(value, tuple) else ()) for value in sizes(config))


def sizes(node: object) -> list:
    """Return the values of all keys of a config that hold a crop size."""
    if isinstance(node, Config):
        node = node.to_dict()
    if isinstance(node, dict):
        own = [value for key, value in node.items() if key in ("crop_size", "size", "img_size")]
        return own + [size for value in node.values() for size in sizes(value)]
    if isinstance(node, list | tuple):
        return [size for value in node for size in sizes(value)]
    return []


@pytest.mark.parametrize("name", [BASE, BEIT, VIT])
def test_a_crop_that_is_not_square_reaches_every_place(name):
    config = load_config(name, knobs=Knobs(crop_size=(128, 192)))
    assert crops(config) == [(128, 192)]
    assert tuple(config.model.backbone.img_size) == (128, 192)
    assert tuple(config.model.data_preprocessor.size) == (128, 192)
    if config.model.test_cfg.mode == "slide":
        assert tuple(config.model.test_cfg.crop_size) == (128, 192)


def test_crop_size_leaves_the_image_scale_and_whole_tests_alone():
    config = load_config(DDRNET, knobs=Knobs(crop_size=(512, 512)))
    scales = [step.scale for step in pipeline(config) if "scale" in step]
    assert scales == [(2048, 1024)]
    assert crops(config) == [(512, 512)]
    assert config.model.test_cfg.keys() == load_config(DDRNET).model.test_cfg.keys()


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"iterations": 0}, "--iterations 0: must be positive"),
        ({"batch_size": -1}, "--batch-size -1: must be positive"),
        ({"crop_size": (64, 0)}, "--crop-size 64 0: must be positive"),
        ({"crop_size": (100, 64)}, "--crop-size 100 64: must be multiples of 16"),
    ],
)
def test_a_knob_that_does_not_fit_is_refused(knobs, message):
    with pytest.raises(UserError, match=message):
        load_config(BASE, knobs=Knobs(**knobs))


def test_a_config_without_the_place_of_a_knob_is_refused(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("model = dict(type='EncoderDecoder')\ntrain_cfg = dict(max_epochs=3)\n")
    with pytest.raises(UserError, match=r"--iterations: .*has no train_cfg.max_iters"):
        load_config(path, knobs=Knobs(iterations=3))
    with pytest.raises(UserError, match=r"--crop-size: .* crops nothing"):
        load_config(path, knobs=Knobs(crop_size=(64, 64)))

"""Options: those with an effect are accepted, all others are refused with a remedy."""

import math
import re
from collections.abc import Iterator
from typing import Any

import pytest

from cae_seg.config_files import find_config, shipped_configs, zoo_configs
from cae_seg.engine.config import compose, import_custom_modules, load_config, read_config
from cae_seg.engine.option_values import wrong_values
from cae_seg.engine.options import find_problems, unread_keys
from cae_seg.engine.readers import TOP_LEVEL
from cae_seg.errors import UserError

BASE = "upernet_cae_base_12_512_slide_160k_ade20k"
PSPNET = "mmseg::pspnet/pspnet_r50-d8_4xb4-160k_ade20k-512x512.py"
SWIN = "mmseg::swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py"


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (PSPNET, {"max_iteration": 5}, "nothing reads this key; nearest: --iterations"),
        (PSPNET, {"crop_size": (64, 64)}, "a variable of the file.*; use --crop-size"),
        (PSPNET, {"data_root": "x"}, "a variable of the file.*; use --data"),
        (BASE, {"max_iterations": 5}, "a variable of the file.*; use --iterations"),
        (
            PSPNET,
            {"norm_cfg.type": "BN"},
            "norm_cfg.type: a variable of the file.*; set model.backbone.norm_cfg.type and",
        ),
        (PSPNET, {"optimizer.lr": 0.1}, "a variable.*; set optim_wrapper.optimizer.lr"),
        (PSPNET, {"train_dataloader.batch_size": 8}, "decided by the command; use --batch-size"),
        (PSPNET, {"train_cfg.max_iters": 8}, "decided by the command; use --iterations"),
        (PSPNET, {"randomness.seed": 8}, "decided by the command; use --seed"),
        (PSPNET, {"work_dir": "x"}, "decided by the command; use --work-dir"),
        (PSPNET, {"sync_bn": "torch"}, "decided by the engine"),
        (PSPNET, {"data_preprocessor.size": 3}, "set model.data_preprocessor.size"),
        (PSPNET, {"model.backbone.depht": 3}, r"\(ResNetV1c\) has no depht; nearest: depth"),
        (PSPNET, {"model.neck.channels": 3}, "model.neck has no type, so that nothing reads"),
        (PSPNET, {"model.test_cfg.strid": 3}, "model.test_cfg has no strid; nearest: stride"),
        (PSPNET, {"model.test_cfg.stride": 3}, "is not read in mode 'whole'"),
        (PSPNET, {"param_scheduler.1.end": 3}, "param_scheduler is a list with entries 0 to 0"),
        (PSPNET, {"env_cfg.mp_cfg.opencv_threads": 1}, "nearest: opencv_num_threads"),
        (PSPNET, {"model.backbone": {"depht": 3}}, "model.backbone.depht: .*nearest: depth"),
        (
            PSPNET,
            {"default_hooks.ema.type": "EMAHook", "default_hooks.ema.momentom": 0.1},
            r"default_hooks.ema \(EMAHook\) has no momentom",
        ),
        (PSPNET, {"default_hooks.checkpiont.interval": 1}, "nearest: checkpoint"),
        (
            SWIN,
            {"optim_wrapper.paramwise_cfg.custom_keys.bakbone.lr_mult": 0.1},
            "no parameter has 'bakbone' in its name; nearest: backbone",
        ),
        (
            SWIN,
            {"optim_wrapper.paramwise_cfg.custom_keys.norm.wd_mult": 0.1},
            "has no wd_mult; nearest: lr_mult",
        ),
        (BASE, {"model.backbone.dephts": 3, "work_dir": "x"}, r"nearest: depth.* \(and 1 more\)"),
    ],
)
def test_an_option_without_effect_is_refused_with_a_remedy(name, options, message):
    with pytest.raises(UserError, match=message) as raised:
        load_config(name, options)
    assert "\n" not in str(raised.value)


def test_options_with_an_effect_are_merged():
    options = {
        "optim_wrapper.optimizer.lr": 0.5,
        "optim_wrapper.clip_grad.max_norm": 1.0,
        "optim_wrapper.paramwise_cfg.custom_keys.decode_head.lr_mult": 10.0,
        "model.test_cfg.mode": "slide",
        "model.test_cfg.crop_size": (64, 64),
        "model.test_cfg.stride": (42, 42),
        "model.auxiliary_head": None,
        "model.backbone.init_cfg.type": "Pretrained",
        "model.backbone.init_cfg.checkpoint": "mine.pth",
        "train_dataloader.dataset.pipeline.2.keep_ratio": False,
        "default_hooks.ema.type": "EMAHook",
        "default_hooks.ema.momentum": 0.1,
        "precision": "bf16",
    }
    config = load_config(PSPNET, options)
    for key, value in options.items():
        node = config
        for name in key.split("."):
            node = node[int(name)] if name.isdigit() else node[name]
        assert node == value, key


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optim_wrapper.optimizer.weight_decay": -0.1}, "a finite number of at least 0"),
        ({"optim_wrapper.optimizer.lr": math.nan}, "a number"),
        ({"optim_wrapper.optimizer.lr": 0}, "a finite number above 0"),
        ({"optim_wrapper.optimizer.lr": "fast"}, "a number"),
        ({"optim_wrapper.clip_grad.max_norm": -1}, "a finite number above 0"),
        ({"model.backbone.drop_path_rate": 1.5}, "a finite number from 0 to 1"),
        ({"model.backbone": {"depth": 0}}, "a whole number of at least 1"),
        ({"model.decode_head.num_classes": 1.5}, "a whole number of at least 1"),
        ({"model.decode_head.align_corners": 1}, "True or False"),
        ({"model.decode_head": 5}, "a mapping, given by its keys"),
        ({"model.backbone.out_indices": "last"}, "a list"),
        ({"train_cfg.val_interval": 0}, "a whole number of at least 1"),
        ({"val_dataloader.batch_size": -1}, "a whole number of at least 1"),
        ({"param_scheduler.1.eta_min": math.inf}, "a finite number of at least 0"),
        ({"precision": "fp17"}, "one of auto, fp16, bf16, fp32, apex"),
        ({"evaluation_precision": "int8"}, "one of fp32, tf32, fp16, bf16"),
    ],
)
def test_a_value_of_the_wrong_kind_or_out_of_range_is_refused(options, message):
    with pytest.raises(UserError, match=f"=.*: must be {message}$") as raised:
        load_config(BASE, options)
    assert "\n" not in str(raised.value)


def test_known_keys_declare_what_other_code_reads(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        f"_base_ = '{find_config(PSPNET)}'\nknown_keys = ['mine', 'model.test_cfg.x']\n"
    )
    config = load_config(path, {"mine.depth": 3, "model.test_cfg.x": 1})
    assert (config.mine.depth, config.model.test_cfg.x) == (3, 1)
    with pytest.raises(UserError, match=r"model.test_cfg.y: model.test_cfg has no y"):
        load_config(path, {"model.test_cfg.y": 1})


def test_keys_of_a_file_that_nothing_reads_are_found():
    name = "dnlnet/dnl_r50-d8_4xb2-80k_cityscapes-769x769.py"
    config = read_config(zoo_configs()[name])
    import_custom_modules(config)
    keys = "optim_wrapper.paramwise_cfg.custom_keys"
    assert set(unread_keys(config)) == {f"{keys}.theta.wd_mult", f"{keys}.phi.wd_mult"}


# Refusals of keys that a config holds: they are right, because the key has no effect there.
NO_EFFECT = (
    r"decided by the (command|engine)"
    r"|model.data_preprocessor is used instead"
    r"|custom_keys\.[\w.]+: no parameter has"
    r"|model\.test_cfg\.(crop_size|stride): is not read in mode 'whole'"
    r"|custom_keys.* has no wd_mult"
    r"|model\.train_cfg has no sampler"
)


def leaves(node: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yield the keys of a config that a dotted option can reach, with their values."""
    if isinstance(node, dict) and node:
        for name, value in node.items():
            if "." not in str(name):
                yield from leaves(value, f"{path}.{name}")
    elif isinstance(node, list | tuple) and node and all(isinstance(e, dict) for e in node):
        for index, value in enumerate(node):
            yield from leaves(value, f"{path}.{index}")
    else:
        yield path, node


def misspell(key: str) -> str:
    """Double the middle letter of the last name of a key, or add one to a single letter."""
    *path, name = key.split(".")
    middle = len(name) // 2
    return ".".join([*path, name[:middle] + "x" + name[middle:]])


def count_mistakes(name: str) -> tuple[int, list[str], list[str]]:
    """Count the keys of a config; return the real ones refused and the misspelt ones accepted."""
    config = read_config(find_config(name))
    compose(config, {})
    import_custom_modules(config)
    real = {
        key: value
        for top in sorted(TOP_LEVEL & set(config))
        for key, value in leaves(config.to_dict()[top], top)
        if not key.split(".")[-1].isdigit()
    }
    refused = [p for p in find_problems(config, real) if not re.search(NO_EFFECT, p)]
    refused += wrong_values(config, real)
    wrong = {misspell(key): value for key, value in real.items()}
    found = {problem.split(": ")[0] for problem in find_problems(config, wrong)}
    return len(real), refused, [key for key in wrong if key not in found]


def is_runnable(name: str) -> bool:
    try:
        load_config(name)
    except UserError:
        return False
    return True


def assert_few_mistakes(names: list[str]) -> None:
    keys, refused, accepted = 0, [], []
    for name in filter(is_runnable, names):
        counted = count_mistakes(name)
        keys += counted[0]
        refused += [f"{name}: {problem}" for problem in counted[1]]
        accepted += [f"{name}: {key}" for key in counted[2]]
    print(f"{keys} keys, {len(refused)} real ones refused, {len(accepted)} misspelt ones accepted")
    assert keys > 100 * len(names)
    assert refused == []
    assert len(accepted) <= 0.005 * keys, accepted


def test_real_keys_are_distinguished_from_misspelt_ones():
    assert_few_mistakes([BASE, PSPNET, SWIN])


@pytest.mark.slow
def test_real_keys_are_distinguished_in_all_shipped_configs_and_40_of_the_zoo():
    zoo = [f"mmseg::{name}" for name in list(zoo_configs())[::16]]
    assert len(zoo) >= 40
    assert_few_mistakes([*shipped_configs(), *zoo])

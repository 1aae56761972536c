"""Reading a config: where it is found, how its mistakes are reported, what is filled in."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from cae_seg.cli import main
from cae_seg.config_files import find_config, shipped_configs, zoo_configs
from cae_seg.engine.config import global_batch_size, load_config
from cae_seg.errors import UserError

PSPNET = "mmseg::pspnet/pspnet_r50-d8_4xb4-160k_ade20k-512x512.py"
BASE = "upernet_cae_base_12_512_slide_160k_ade20k"


def write(folder: Path, text: str) -> Path:
    path = folder / "mine.py"
    path.write_text(text)
    return path


def test_a_config_is_found_by_path_stem_and_name_in_the_zoo():
    by_stem = find_config(BASE)
    assert by_stem == find_config(by_stem) == shipped_configs()[BASE]
    assert find_config(PSPNET) == find_config(PSPNET.removesuffix(".py"))
    assert find_config(Path(PSPNET)) == zoo_configs()[PSPNET.removeprefix("mmseg::")]
    assert len(zoo_configs()) > 600


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        (BASE.replace("base", "bsae"), BASE),
        (PSPNET.replace("160k", "16k"), PSPNET),
        ("mmseg::no/such.py", "mmseg::pspnet"),
    ],
)
def test_a_missing_config_is_refused_with_the_nearest(name, nearest):
    with pytest.raises(UserError, match=f"no such config.*{nearest}"):
        load_config(name)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model = dict(", r"mine.py: cannot be read \(.*never closed"),
        ("import sys\nsys.exit('not today')", r"mine.py: cannot be read \(SystemExit: not today"),
        ("import sys\nsys.exit()", r"mine.py: cannot be read \(SystemExit"),
        ("import sys\nsys.exit(0)", r"mine.py: cannot be read \(SystemExit: 0"),
        ("raise SystemExit", r"mine.py: cannot be read \(SystemExit"),
        ("raise SystemExit('no')", r"mine.py: cannot be read \(SystemExit: no"),
        ("raise KeyboardInterrupt", r"mine.py: cannot be read \(KeyboardInterrupt"),
        ("raise GeneratorExit", r"mine.py: cannot be read \(GeneratorExit"),
        ("class E(BaseException): pass\nraise E('a\\nb')", r"mine.py: cannot be read \(E: a b"),
        ("1 / 0", r"mine.py: cannot be read \(division by zero"),
        ("_base_ = 'none.py'", r"mine.py: cannot be read \(.*none.py"),
        ("x = 1", "mine.py: has no model"),
        ("model = {}\ndata = {}\nlr_config = {}", "data, lr_config: keys of mmsegmentation 0.x"),
        (
            "model = {}\ncustom_imports = dict(imports='no_such_package.sub')",
            r"custom_imports: no_such_package.sub cannot be imported; needs",
        ),
        (
            "model = {}\ncustom_imports = dict(imports=['mmdet.models'])",
            "mmdet.models cannot be imported; needs mmdetection with compiled mmcv ops",
        ),
        (
            "model = dict(type='EncoderDecoder', backbone=dict(type='ResNetV1e'))",
            r"model.backbone.type: nothing is registered as ResNetV1e; nearest: ResNetV1",
        ),
        (
            "model = dict(type='EncoderDecoder')\ncustom_hooks = [dict(type='EMAHok')]",
            r"custom_hooks.0.type: nothing is registered as EMAHok; nearest: EMAHook",
        ),
    ],
)
def test_a_mistake_in_a_config_is_one_line(tmp_path, text, message):
    with pytest.raises(UserError, match=message) as raised:
        load_config(write(tmp_path, text))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "text", ["import sys\nsys.exit(0)", "raise KeyboardInterrupt", "open('missing')", "1 +"]
)
def test_a_module_of_a_config_may_raise_anything(text, tmp_path, monkeypatch):
    (tmp_path / "a_module_of_the_user.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    config = write(tmp_path, "model = {}\ncustom_imports = dict(imports='a_module_of_the_user')")
    with pytest.raises(UserError, match=r"mine.py: custom_imports: a_module_of_the_user cannot"):
        load_config(config)


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "c.py", "--work-dir", "w", "--device", "cpu"],
        ["evaluate", "c.py", "w.pth", "--device", "cpu"],
        ["predict", "w.pth", "i.png", "--config", "c.py", "--device", "cpu"],
        ["export", "w.pth", "--format", "mmseg", "--config", "c.py"],
        ["prepare", "checkpoint", "w.pth", "--config", "c.py", "--out", "r.json"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_config_that_exits_ends_no_command_with_its_own_status(
    arguments, tmp_path, monkeypatch, capfd
):
    monkeypatch.chdir(tmp_path)
    Path("c.py").write_text("import sys\nsys.exit(0)\n")
    torch.save({"state_dict": {"x": torch.zeros(2)}, "meta": {}}, "w.pth")
    Image.new("RGB", (8, 8)).save("i.png")
    assert main(arguments) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line == "cae-seg: error: c.py: cannot be read (SystemExit: 0)"
    assert not {"w/weights.pth", "r.json", "mmseg_model"} & set(map(str, Path().rglob("*")))


def test_a_package_that_is_missing_is_named():
    name = next(name for name in zoo_configs() if name.startswith("mask2former/mask2former_r50"))
    with pytest.raises(UserError, match=r"mmdet\..*needs mmdetection with compiled mmcv ops"):
        load_config(f"mmseg::{name}")


def test_a_config_may_fail_to_import_what_it_can_do_without(tmp_path):
    text = Path(find_config(PSPNET)).read_text()
    text = text.replace("'../_base_", f"'{find_config(PSPNET).parents[1]}/_base_")
    imports = "custom_imports = dict(imports=['absent'], allow_failed_imports=True)\n"
    config = load_config(write(tmp_path, imports + text))
    assert config.model.type == "EncoderDecoder"


def test_published_pretrained_reaches_the_backbone():
    assert load_config(PSPNET).model.backbone.init_cfg.checkpoint == "open-mmlab://resnet50_v1c"
    config = load_config(PSPNET, {"model.pretrained": "mine.pth"})
    assert config.model.backbone.init_cfg == {"type": "Pretrained", "checkpoint": "mine.pth"}
    assert "pretrained" not in config.model
    assert load_config(PSPNET, {"model.pretrained": None}).model.backbone.get("init_cfg") is None


@pytest.mark.parametrize(
    ("name", "images"),
    [
        (PSPNET, 16),
        ("mmseg::segnext/segnext_mscan-t_1xb16-adamw-160k_ade20k-512x512.py", 16),
        ("mmseg::poolformer/fpn_poolformer_s36_8x4_512x512_40k_ade20k.py", 32),
        ("mmseg::pidnet/pidnet-s_2xb6-120k_1024x1024-cityscapes.py", 12),
        (BASE, 16),
    ],
)
def test_global_batch_size_is_the_published_one(name, images):
    assert load_config(name).total_batch_size == images


def test_global_batch_size_is_the_most_explicit_one(tmp_path):
    text = f"_base_ = '{find_config(PSPNET)}'\n"
    path = write(tmp_path, text)
    assert global_batch_size(load_config(path)) == 4
    path = write(tmp_path, text + "auto_scale_lr = dict(enable=False, base_batch_size=24)\n")
    assert global_batch_size(load_config(path)) == 24
    path = write(tmp_path, path.read_text() + "total_batch_size = 12\n")
    assert global_batch_size(load_config(path)) == 12

"""Options and knobs of a sheet's rows are checked when the sheet is read."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from cae_seg.engine.check_sheet import check_rows, check_sheet
from cae_seg.errors import UserError
from cae_seg.sheet.reading import Sheet, load_sheet

ROW = {
    "name": "a",
    "backbone": "ViT-tiny",
    "pretraining_epochs": 300,
    "checkpoint": "c.pth",
    "learning_rate": "1e-3",
    "gpus": 0,
}
TINY = Path("configs_local/cae/upernet/upernet_cae_tiny_demo.py")


def sheet_of(folder: Path, **keys: object) -> Sheet:
    path = folder / "sheet.yaml"
    path.write_text(yaml.safe_dump({"experiments": [{**ROW, "name": "b"}, {**ROW, **keys}]}))
    return load_sheet(path)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"options": {"model.backbone.depht": 3}}, "model.backbone.depht: .*nearest: depth"),
        ({"options": {"max_iterations": 3}}, "max_iterations: .*use --iterations"),
        ({"options": {"optim_wrapper.optimizer.lr": 3}}, "is replaced by --learning-rate"),
        ({"options": {"model.pretrained": "x.pth"}}, "is replaced by --pretrained"),
        ({"options": {"model.backbone.drop_path_rate": -1}}, "must be a finite number from 0 to 1"),
        ({"options": {"model.backbone.num_heads": 5}}, "the model cannot be built"),
        ({"crop_size": 50}, "--crop-size 50 50: must be multiples of 16"),
        (
            {"config": "mmseg::maskformer/maskformer_r50-d32_8xb2-160k_ade20k-512x512.py"},
            "needs mmdetection",
        ),
    ],
)
def test_a_row_whose_options_have_no_effect_is_refused(tmp_path, keys, message):
    with pytest.raises(UserError, match=message) as raised:
        check_rows(sheet_of(tmp_path, **keys))
    assert str(raised.value).startswith(f"{tmp_path / 'sheet.yaml'}: experiment 'a': ")


ZOO_SWIN = "mmseg::swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py"


@pytest.mark.parametrize(
    ("keys", "built"),
    [
        ({"backbone": "Swin-B", "config": ZOO_SWIN}, "Swin-T"),
        ({"backbone": "ViT-B", "timm": "resnet50"}, "ResNet-50"),
        ({"backbone": "ViT-L/16", "timm": "vit_base_patch16_224"}, "ViT-B"),
        ({"backbone": "Swin-T", "config": ZOO_SWIN}, None),
        ({"backbone": "ViT-B/16", "timm": "vit_base_patch16_224"}, None),
        ({"backbone": "Mine", "timm": "resnet50"}, None),
    ],
)
def test_a_label_that_the_config_does_not_build_is_refused(tmp_path, keys, built):
    sheet = sheet_of(tmp_path, **keys)
    if built is None:
        assert check_rows(sheet) == 1
        return
    with pytest.raises(UserError, match=f"backbone: '{keys['backbone']}'.*builds {built}"):
        check_rows(sheet)


OWN = {
    "swin": 'backbone=dict(type="SwinBackbone", embed_dims=128, depths=[2, 2, 18, 2])',
    "vit": 'backbone=dict(type="CAE", embed_dim=64)',
    "timm": 'timm="resnet50"',
    "mine": 'backbone=dict(type="mine.Stripes", width=16)',
}


@pytest.mark.parametrize(
    ("model", "label", "built"),
    [
        ("swin", "Swin-T", "Swin-B"),
        ("swin", "ViT-B", "Swin-B"),
        ("swin", "Swin-B", None),
        ("vit", "ViT-B/16", "a CAE of width 64"),
        ("vit", "Tiny", None),
        ("timm", "ViT-B", "ResNet-50"),
        ("mine", "ViT-B", None),
    ],
)
def test_own_config_is_compared_with_the_label_without_being_built(tmp_path, model, label, built):
    config = tmp_path / "mine.py"
    config.write_text(f"custom_imports = dict(imports=['absent'])\nmodel = dict({OWN[model]})\n")
    sheet = sheet_of(tmp_path, backbone=label, config=str(config))
    if built is None:
        assert check_rows(sheet) == 1
        return
    with pytest.raises(UserError, match=rf"'a': backbone: '{label}' contradicts.*builds {built}"):
        check_rows(sheet)


def test_own_config_that_cannot_be_read_is_refused_before_any_job(tmp_path):
    (tmp_path / "mine.py").write_text("model = dict(\n")
    with pytest.raises(UserError, match=r"'a': config: .*mine\.py: cannot be read"):
        check_sheet(sheet_of(tmp_path, config=str(tmp_path / "mine.py")))


def test_rows_with_options_and_knobs_that_fit_pass(tmp_path):
    options = {"model.backbone.drop_path_rate": 0.2, "default_hooks.logger.interval": 1}
    assert check_rows(sheet_of(tmp_path, options=options, iterations=9, crop_size=64)) == 1


def test_the_check_in_another_process_names_the_row(tmp_path):
    with pytest.raises(UserError, match=r"sheet.yaml: experiment 'a': .*nearest: depth"):
        check_sheet(sheet_of(tmp_path, options={"model.backbone.depht": 3}))


def test_a_check_that_breaks_is_no_success(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(UserError, match=r"sheet.yaml: cannot be checked"):
        check_sheet(sheet_of(tmp_path, options={"model.backbone.depth": 4}))


def test_a_sheet_without_changes_of_the_recipe_needs_no_other_process(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    check_sheet(sheet_of(tmp_path))


def test_the_check_at_parse_time_does_not_import_torch():
    code = "import sys, cae_seg.engine.check_sheet; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)

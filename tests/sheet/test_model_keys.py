"""Rows of other backbones: labels, timm models, heads, frozen backbones, weights of the hub."""

import re
from pathlib import Path

import pytest

from cae_seg.errors import UserError
from cae_seg.sheet.reading import load_sheet

ROOT = Path(__file__).parents[2]
ROW = "{name: one, backbone: %s, pretraining_epochs: 1, learning_rate: 1e-4, checkpoint: a.pth%s}"


def sheet(tmp_path: Path, backbone: str, more: str = ""):
    path = tmp_path / "sheet.yaml"
    path.write_text(f"experiments:\n  - {ROW % (backbone, more)}\n")
    return load_sheet(path, root=ROOT)


def test_published_systems_are_rows_of_a_sheet():
    rows = load_sheet(ROOT / "config" / "backbones.yaml", root=ROOT).experiments
    published = {row.name: row.published_miou for row in rows}
    assert published["swin_t"] == 44.51
    assert published["setr_mla"] == 48.64
    assert published["beit_b_640"] == 53.61
    assert published["dinov3_l"] == 54.9
    assert {row.backbone for row in rows} >= {"Swin-B", "XCiT-M24/8", "ViT-L/16", "ViT-B"}


@pytest.mark.parametrize(
    ("backbone", "config", "built"),
    [
        ("ViT-B", "upernet_swin_tiny_patch4_window7_512x512_160k_ade20k", "Swin-T"),
        ("Swin-S", "upernet_swin_base_patch4_window7_512x512_160k_ade20k", "Swin-B"),
        ("ViT-B", "setr_pup_512x512_160k_ade20k_bs_16", "ViT-L"),
        ("ViT-B", "upernet_beit_large_24_640_slide_160k_ade20k_pt2ft", "ViT-L"),
        ("XCiT-S12", "upernet_xcit_small_24_p8_160k_ade20k", "XCiT-S24"),
        ("ViT-L", "upernet_cae_base_12_512_slide_160k_ade20k", "ViT-B"),
    ],
)
def test_label_that_the_config_does_not_build_is_refused(tmp_path, backbone, config, built):
    with pytest.raises(UserError, match=f"'{backbone}' contradicts the config {config}.*{built}"):
        sheet(tmp_path, backbone, f", config: {config}")


def test_every_shipped_config_has_a_label(tmp_path):
    from cae_seg.sheet.schema import BUILT_BY_CONFIG

    stems = {
        path.stem
        for path in (ROOT / "configs_local").rglob("*.py")
        if "_base_" not in path.parts and "timm" not in path.parts
    }

    for stem in stems:
        assert sum(bool(re.search(p, stem)) for p in BUILT_BY_CONFIG) == 1, stem


def test_timm_row_takes_the_recipe_of_timm_models(tmp_path):
    row = sheet(tmp_path, "DINOv3-B", ", timm: vit_base_patch16_dinov3.lvd1689m").experiments[0]
    assert row.stem == "upernet_timm_512_slide_160k_ade20k"
    assert row.model_options == {"model.timm": "vit_base_patch16_dinov3.lvd1689m"}
    row = sheet(tmp_path, "R50", ", timm: resnet50, head: linear, frozen: true").experiments[0]
    assert row.stem == "linear_timm_512_slide_40k_ade20k"
    assert row.model_options["model.frozen"] == "True"
    assert row.head_label == "linear"
    assert row.recipe_changes == ""  # backbone and head have columns of their own


@pytest.mark.parametrize(
    ("more", "label"),
    [
        (", config: upernet_swin_tiny_patch4_window7_512x512_160k_ade20k", "UperNet"),
        (", config: setr_pup_512x512_160k_ade20k_bs_16", "SETR PUP"),
        (", config: linear_dinov2_base_14_512_slide_40k_ade20k", "linear"),
        (", timm: resnet50", "UperNet"),
        (", timm: resnet50, frozen: true", "linear"),
        (", timm: resnet50, head: fcn", "FCN"),
        (", config: 'mmseg::pspnet/pspnet_r50-d8_4xb4-80k_ade20k-512x512.py'", "pspnet"),
    ],
)
def test_table_names_the_head_of_a_row(tmp_path, more, label):
    names = {"swin": "Swin-T", "setr": "ViT-L", "dinov2": "ViT-B"}
    backbone = next((name for key, name in names.items() if key in more), "R50")
    assert sheet(tmp_path, backbone, more).experiments[0].head_label == label


def test_row_without_a_checkpoint_starts_from_random_weights(tmp_path):
    path = tmp_path / "sheet.yaml"
    path.write_text(f"experiments:\n  - {ROW % ('ViT-B', '')}\n".replace("a.pth", "none"))
    (row,) = load_sheet(path, root=ROOT).experiments
    assert not row.has_checkpoint
    assert row.model_options == {"model.pretrained": "None"}


def test_head_may_be_a_config(tmp_path):
    head = "mmseg::pspnet/pspnet_r50-d8_4xb4-80k_ade20k-512x512.py"
    row = sheet(tmp_path, "ViT-B", f", head: '{head}'").experiments[0]
    assert row.model_options == {"model.head": head}
    assert row.head_label == "pspnet_r50-d8_4xb4-80k_ade20k-512x512"
    for wrong, hint in (("linaer", "did you mean linear"), ("mmseg::pspnet/psp.py", "nearest")):
        with pytest.raises(UserError, match=f"experiment 'one': head: .*{hint}"):
            sheet(tmp_path, "ViT-B", f", head: '{wrong}'")


def test_backbone_without_a_recipe_needs_a_config(tmp_path):
    with pytest.raises(UserError, match="config: is missing; 'Mine' has no recipe of its own"):
        sheet(tmp_path, "Mine")


def test_hub_name_becomes_its_address(tmp_path):
    path = tmp_path / "sheet.yaml"
    text = ROW % ("ViT-B", "")
    path.write_text("experiments:\n  - " + text.replace("a.pth", "hf:timm/vit_base.a_b") + "\n")
    row = load_sheet(path, root=ROOT).experiments[0]
    assert (
        row.checkpoint == "https://huggingface.co/timm/vit_base.a_b/resolve/main/model.safetensors"
    )
    assert row.checkpoint_is_url
    path.write_text("experiments:\n  - " + text.replace("a.pth", "hf:timm") + "\n")
    with pytest.raises(UserError, match="hf:OWNER/NAME"):
        load_sheet(path, root=ROOT)


def test_unknown_head_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"head: .*'unet'"):
        sheet(tmp_path, "ViT-B", ", head: unet")

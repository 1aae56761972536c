"""Experiment sheets: what they mean, and how their mistakes are reported."""

import json
import runpy
from pathlib import Path

import jsonschema
import pytest
import yaml

from cae_seg.errors import UserError
from cae_seg.sheet.reading import load_sheet

ROOT = Path(__file__).resolve().parents[1]
SHEETS = ["published", "sweep", "demo"]
ROW = "{name: a, backbone: ViT-B, pretraining_epochs: 300, checkpoint: c.pth, learning_rate: 2e-4}"
PUBLISHED_2E_4 = "upernet_cae_base_12_512_slide_160k_ade20k_pt_2e-4"


def load(tmp_path, text):
    path = tmp_path / "sheet.yaml"
    path.write_text(text)
    return load_sheet(path, root=ROOT)


def load_row(tmp_path, row):
    return load(tmp_path, f"experiments:\n  - {row}\n").experiments[0]


def replaced(old, new):
    assert old in ROW
    return ROW.replace(old, new)


# What sheets mean


@pytest.mark.parametrize("name", SHEETS)
def test_shipped_sheets_are_valid_and_their_configs_exist(name):
    sheet = load_sheet(ROOT / f"config/{name}.yaml", root=ROOT)
    assert sheet.experiments
    assert all((ROOT / row.config).is_file() for row in sheet.experiments)


def test_the_published_sheet_holds_the_published_table():
    rows = load_sheet(ROOT / "config/published.yaml", root=ROOT).experiments
    table = [
        (row.backbone, row.pretraining_epochs, row.learning_rate, row.published_miou)
        for row in rows
    ]
    assert table == [
        ("ViT-B", 300, "3e-4", 48.1),
        ("ViT-B", 800, "2e-4", 49.7),
        ("ViT-B", 800, "4e-4", 49.6),
        ("ViT-B", 1600, "1e-4", 50.3),
        ("ViT-L", 1600, "4e-5", 54.9),
    ]
    assert all(row.learning_rate in row.config for row in rows)


@pytest.mark.parametrize("rate", ["2e-4", "0.0002", "2.0e-4", "2E-4", "'2e-4'"])
def test_learning_rates_stay_the_text_they_are_written_as(tmp_path, rate):
    row = load_row(tmp_path, replaced("2e-4", rate))
    assert row.learning_rate == rate.strip("'")


def test_a_grid_spans_its_rows_in_order(tmp_path):
    sheet = load(
        tmp_path,
        """
defaults: {seeds: [0, 1]}
grid:
  backbone: [ViT-B, ViT-L]
  pretraining_epochs: [300, 1600]
  learning_rate: [1e-4, 0.0002]
  checkpoint: "{size}/{epochs}.pth"
  gpus: 4
""",
    )
    assert len(sheet.experiments) == 8
    assert [row.name for row in sheet.experiments[:3]] == [
        "vit_b_300ep_lr1e-4",
        "vit_b_300ep_lr0.0002",
        "vit_b_1600ep_lr1e-4",
    ]
    last = sheet.experiments[-1]
    assert (last.checkpoint, last.seeds, last.gpus) == ("large/1600.pth", (0, 1), 4)
    assert "_large_24_" in last.config


def test_rows_take_defaults_and_override_them_key_by_key(tmp_path):
    sheet = load(
        tmp_path,
        f"""
defaults: {{gpus: 4, options: {{a: 1, b: 1e-3}}, resources: {{runtime: 2d, qos: long}}}}
experiments:
  - {ROW.replace("}", ", options: {b: true}, resources: {runtime: 60}}")}
""",
    )
    row = sheet.experiments[0]
    assert row.gpus == 4
    assert row.options == {"a": "1", "b": "true"}
    assert (row.resources.runtime, row.resources.qos) == (60, "long")


def test_a_config_that_names_its_rate_gives_it(tmp_path):
    row = load_row(tmp_path, replaced("learning_rate: 2e-4", f"config: {PUBLISHED_2E_4}"))
    assert row.learning_rate == "2e-4"
    assert row.stem == PUBLISHED_2E_4


def test_a_config_may_be_a_path_of_ones_own(tmp_path):
    own = tmp_path / "mine.py"
    own.write_text("x = 1")
    row = load_row(tmp_path, replaced("learning_rate", f"config: {own}, learning_rate"))
    assert row.config == str(own)


def test_a_config_may_come_from_the_zoo_of_mmsegmentation(tmp_path):
    name = "mmseg::ddrnet/ddrnet_23_in1k-pre_2xb6-120k_cityscapes-1024x1024.py"
    row = load_row(tmp_path, replaced("learning_rate", f"config: {name}, gpus: 6, learning_rate"))
    assert row.config == name
    with pytest.raises(UserError, match="8 do not divide the 12 images of an iteration; 1 2 3 4 6"):
        load_row(tmp_path, replaced("learning_rate", f"config: {name}, learning_rate"))
    with pytest.raises(UserError, match=r"config: .*no such config in mmsegmentation; nearest"):
        load_row(tmp_path, replaced("learning_rate", f"config: {name}x, learning_rate"))


def test_a_row_may_change_its_recipe_by_knobs(tmp_path):
    knobs = "iterations: 100, batch_size: 4, gpus: 4, crop_size: 96"
    row = load_row(tmp_path, replaced("learning_rate", f"{knobs}, learning_rate"))
    assert (row.iterations, row.batch_size, row.crop_size) == (100, 4, (96, 96))
    assert row.recipe_changes == "iterations 100, batch_size 4, crop_size 96 x 96"
    row = load_row(tmp_path, replaced("learning_rate", "crop_size: [64, 96], learning_rate"))
    assert row.recipe_changes == "crop_size 64 x 96"
    assert load_row(tmp_path, ROW).recipe_changes == ""


def test_an_unknown_experiment_is_refused_with_the_nearest_names():
    sheet = load_sheet(ROOT / "config/published.yaml", root=ROOT)
    with pytest.raises(UserError, match="did you mean vit_b_800"):
        sheet.experiment("vit_b_80")


# Mistakes: one line that names file, line, row, key, value and what is allowed

MISTAKES = {
    "no number": ("2e-4", "fast", r"learning_rate: 'fast' is no learning rate"),
    "negative rate": ("2e-4", "-2e-4", r"'-2e-4' is no learning rate"),
    "infinite rate": ("2e-4", "inf", r"'inf' is no learning rate"),
    "rate of a list": ("2e-4", "[1e-4]", r"is no learning rate"),
    "no rate": (", learning_rate: 2e-4", "", r"learning_rate: is missing"),
    "unknown key": ("learning_rate", "lerning_rate", r"lerning_rate: .*did you mean learning_rate"),
    "backbone": (
        "ViT-B",
        "ViT-S",
        r"config: is missing; 'ViT-S' has no recipe of its own, only ViT-B, ViT-L",
    ),
    "config": (
        "learning_rate",
        f"config: {PUBLISHED_2E_4[:-1]}5, learning_rate",
        rf"config: '\S+' is no config; did you mean {PUBLISHED_2E_4[:-4]}",
    ),
    "rate against config": (
        "learning_rate: 2e-4",
        f"config: {PUBLISHED_2E_4}, learning_rate: 3e-4",
        r"learning_rate: 3e-4 contradicts the config",
    ),
    "backbone against config": (
        "backbone: ViT-B",
        f"config: {PUBLISHED_2E_4}, backbone: ViT-L",
        r"backbone: 'ViT-L' contradicts the config",
    ),
    "missing key": ("checkpoint: c.pth, ", "", r"checkpoint: is missing"),
    "seed": ("learning_rate", "seeds: [-1], learning_rate", r"seeds.0: -1: .*greater than"),
    "seed twice": ("learning_rate", "seeds: [1, 1], learning_rate", r"seeds: .*twice"),
    "no seeds": ("learning_rate", "seeds: [], learning_rate", r"seeds: is empty"),
    "gpus": ("learning_rate", "gpus: 3, learning_rate", r"gpus: 3 do not divide the 16 images"),
    "gpus of a batch": (
        "learning_rate",
        "gpus: 8, batch_size: 4, learning_rate",
        r"gpus: 8 do not divide the 4 images of an iteration; 1 2 4 do",
    ),
    "iterations": ("learning_rate", "iterations: 0, learning_rate", r"iterations: 0: .*greater"),
    "crop": ("learning_rate", "crop_size: [1, 2, 3], learning_rate", r"crop_size: .*at most 2"),
    "nodes": ("learning_rate", "gpus: 2, nodes: 4, learning_rate", r"gpus: 2 do not divide evenly"),
    "device": ("learning_rate", "device: tpu, learning_rate", r"choose from auto, cuda, cpu"),
    "resource": (
        "learning_rate",
        "resources: {partition: x}, learning_rate",
        r"resources.partition: is no key of a sheet; did you mean slurm_partition",
    ),
    "option": ("learning_rate", "options: {a: [1]}, learning_rate", r"options.a: \[1\] is a list"),
    "sha256": ("learning_rate", "checkpoint_sha256: ab, learning_rate", r"'ab' does not match"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_a_row_is_reported_in_one_line(tmp_path, mistake):
    old, new, expected = MISTAKES[mistake]
    with pytest.raises(UserError, match=expected) as caught:
        load_row(tmp_path, replaced(old, new))
    assert str(caught.value).startswith(f"{tmp_path / 'sheet.yaml'}:2: experiment 'a': ")
    assert "\n" not in str(caught.value)


WHOLE = {
    "nothing": ("", r"is empty; write a row"),
    "no rows": ("results: results\n", r"is empty; write a row"),
    "empty rows": ("experiments:\n", r"is empty; write a row"),
    "not a mapping": ("- a\n- b\n", r"must be a mapping"),
    "no YAML": ("experiments: [", r"sheet.yaml:\d+: is not a valid sheet"),
    "two names": (f"experiments:\n  - {ROW}\n  - {ROW}\n", r":3: experiment 'a': name: two rows"),
    "key twice": ("results: a\nresults: b\n", r":2: .*duplicate key 'results'"),
    "reserved": (
        f"experiments:\n  - {ROW.replace('name: a', 'name: logs')}\n",
        r"is a file or folder of the results",
    ),
    "path as name": (f"experiments:\n  - {ROW.replace('name: a', 'name: a/b')}\n", r"'a/b' does"),
    "unknown key": (f"result: x\nexperiments:\n  - {ROW}\n", r":1: result: .*did you mean results"),
    "data": (f"data: {{rot: x}}\nexperiments:\n  - {ROW}\n", r"data.rot: .*did you mean root"),
    "default": (f"defaults: {{gpuz: 1}}\nexperiments:\n  - {ROW}\n", r"defaults.gpuz: .*mean gpus"),
    "row": ("experiments:\n  - 4\n", r":2: experiments.0: 4 is not a mapping"),
    "pattern": (
        "grid: {backbone: ViT-B, pretraining_epochs: 1, learning_rate: 1, checkpoint: '{lr}'}\n",
        r"the pattern '\{lr\}' may hold \{backbone\}, \{size\}, \{epochs\} only",
    ),
}


@pytest.mark.parametrize("mistake", WHOLE)
def test_a_mistake_in_a_sheet_is_reported_in_one_line(tmp_path, mistake):
    text, expected = WHOLE[mistake]
    with pytest.raises(UserError, match=expected) as caught:
        load(tmp_path, text)
    assert "\n" not in str(caught.value)


def test_a_missing_sheet_is_named_with_its_neighbours(tmp_path):
    (tmp_path / "published.yaml").touch()
    with pytest.raises(UserError, match=r"no such sheet; did you mean .*published\.yaml"):
        load_sheet(tmp_path / "publishd.yaml")


# What is generated from the models


def generated():
    return runpy.run_path(str(ROOT / "workflow/schemas/generate.py"))


def test_the_schema_is_up_to_date():
    text = (ROOT / "workflow/schemas/sheet.schema.json").read_text()
    assert text == generated()["schema_text"](), "run python workflow/schemas/generate.py"


def test_the_tables_of_keys_are_up_to_date():
    text = (ROOT / "config/README.md").read_text()
    assert text == generated()["readme_text"](text), "run python workflow/schemas/generate.py"


def test_every_key_has_a_description():
    schema = json.loads(generated()["schema_text"]())
    for model in [schema, *schema["$defs"].values()]:
        for key, described in model.get("properties", {}).items():
            assert described.get("description"), key


@pytest.mark.parametrize("name", SHEETS)
def test_the_schema_accepts_the_shipped_sheets(name):
    schema = json.loads((ROOT / "workflow/schemas/sheet.schema.json").read_text())
    jsonschema.validate(yaml.safe_load((ROOT / f"config/{name}.yaml").read_text()), schema)


def test_the_schema_refuses_what_the_loader_refuses():
    schema = json.loads((ROOT / "workflow/schemas/sheet.schema.json").read_text())
    for sheet in ({"resultz": "x"}, {"experiments": [{"name": "a"}]}, {"defaults": {"gpus": -1}}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(sheet, schema)

"""Data sets of any kind, from `cae-seg prepare data` through training to metrics and pictures."""

import json

import numpy as np
import pytest
import torch
from data_sets import COUNTS, MAKERS, make_folder
from PIL import Image
from tiny_runs import job_in

from cae_seg.cli import main
from cae_seg.data.prepare.manifest import load_manifest
from cae_seg.engine.job import DONE, EvaluateJob
from cae_seg.engine.predict import predict
from cae_seg.launch.launcher import launch_evaluate, launch_train

LEAVES = ["stem", "leaf", "flower"]


def prepare(capsys, root, kind, *options):
    """Prepare a data set; return its manifest, or None, and what was said."""
    manifest = root.parent / f"{root.name}-prepared" / "manifest.json"
    command = ["prepare", "data", f"--source={root}", f"--type={kind}"]
    command += [f"--root={manifest.parent}", f"--manifest={manifest}", *options]
    status = main(command)
    said = "".join(capsys.readouterr())
    return (manifest if status == DONE else None), said


def train(folder, config, manifest, **changes):
    job = job_in(folder, config, manifest, 2, **changes)
    assert launch_train(job) == DONE
    metrics = folder / "metrics.json"
    weights = job.work_dir / "weights.pth"
    evaluation = EvaluateJob(
        config=job.work_dir / "config.py",
        weights=weights,
        data=manifest,
        device="cpu",
        out=metrics,
    )
    assert launch_evaluate(evaluation) == DONE
    return json.loads(metrics.read_text()), weights


@pytest.mark.parametrize("kind", MAKERS)
def test_type_of_mmsegmentation_trains_and_evaluates_in_its_layout(kind, config, tmp_path, capsys):
    make, classes = MAKERS[kind]
    make(tmp_path / "set")
    manifest, said = prepare(capsys, tmp_path / "set", kind)
    assert "training: annotations have " in said
    prepared = load_manifest(manifest)
    assert prepared.counts == COUNTS
    assert len(prepared.classes) == classes
    metrics, weights = train(tmp_path / "run", config, manifest)
    assert metrics["images"] == COUNTS["validation"]
    assert [part["name"] for part in metrics["per_class"]] == list(prepared.classes)
    state = torch.load(weights, weights_only=True)["state_dict"]
    assert state["decode_head.conv_seg.weight"].shape[0] == classes
    assert state["auxiliary_head.conv_seg.weight"].shape[0] == classes
    pixels = sum(int(n) for row in metrics["confusion"] for n in row.split())
    assert 0 < pixels <= COUNTS["validation"] * 40 * 64


def test_own_folder_with_ignored_label_and_class_weights(config, tmp_path, capsys):
    root = make_folder(tmp_path / "leaves", [0, 1, 2, 7])
    classes = [{"name": name, "color": [10 * n, 200, 5]} for n, name in enumerate(LEAVES)]
    (root / "classes.json").write_text(json.dumps(classes))
    options = ("--reduce-zero-label=false", "--ignore-index=7")
    manifest, said = prepare(capsys, root, "folder", *options)
    assert "training: annotations have 0 stem, 1 leaf, 2 flower; 7 ignored" in said
    weights = {"model.class_weights": [1, 2, 0.5]}
    metrics, trained = train(tmp_path / "run", config, manifest, cfg_options=weights)
    labels = [
        np.asarray(Image.open(path)) for path in sorted((root / "annotations/val").glob("*.png"))
    ]
    counted = [sum(int(n) for n in row.split()) for row in metrics["confusion"]]
    assert counted == [sum(int((label == n).sum()) for label in labels) for n in range(3)]
    text = (tmp_path / "run/work/config.py").read_text()
    assert text.count("'class_weight': [1, 2, 0.5]") == 2
    assert "'seg_pad_val': 7" in text
    out = tmp_path / "predicted"
    picture = root / "images/val/0.jpg"
    assert main(["predict", str(trained), str(picture), f"--out={out}", "--device=cpu"]) == DONE
    predicted = np.asarray(Image.open(out / "0.png"))
    assert set(np.unique(predicted)) <= {0, 1, 2}
    panel = np.asarray(Image.open(out / "0_panel.png")).reshape(-1, 3)
    colors = {tuple(color) for color in panel.tolist()}
    assert {(10 * n, 200, 5) for n in np.unique(predicted)} <= colors


def test_predictions_have_the_values_of_the_annotations(config, tmp_path, capsys):
    """Where 0 is ignored, classes count from 1."""
    root = make_folder(tmp_path / "leaves", [0, 1, 2, 3], LEAVES)
    manifest, said = prepare(capsys, root, "folder", "--reduce-zero-label=true")
    assert "1 stem, 2 leaf, 3 flower; 0 ignored" in said
    _, trained = train(tmp_path / "run", config, manifest)
    out = tmp_path / "predicted"
    picture = root / "images/val/0.jpg"
    assert main(["predict", str(trained), str(picture), f"--out={out}", "--device=cpu"]) == DONE
    assert set(np.unique(np.asarray(Image.open(out / "0.png")))) <= {1, 2, 3}


def test_other_meaning_of_the_same_files_is_other_data(tmp_path, capsys):
    root = make_folder(tmp_path / "leaves", [1, 2], LEAVES)
    fingerprints = set()
    for answer in ("true", "false"):
        manifest, said = prepare(capsys, root, "folder", f"--reduce-zero-label={answer}")
        fingerprints.add(load_manifest(manifest).fingerprint)
        unused = "flower" if answer == "true" else "stem"
        assert f"training: note: no annotation has {unused}" in said
    (root / "classes.txt").write_text("a\nb\nc\n")
    manifest, _ = prepare(capsys, root, "folder", "--reduce-zero-label=false")
    fingerprints.add(load_manifest(manifest).fingerprint)
    assert len(fingerprints) == 3


def test_changed_file_is_noticed_before_training(config, tmp_path, capsys):
    root = make_folder(tmp_path / "leaves", [0, 1, 2], LEAVES)
    manifest, _ = prepare(capsys, root, "folder", "--reduce-zero-label=false")
    Image.fromarray(np.zeros((40, 64), np.uint8)).save(root / "annotations/val/1.png")
    command = ["train", str(config), f"--work-dir={tmp_path / 'run'}", f"--data={manifest}"]
    assert main([*command, "--device=cpu"]) == 2
    assert "annotations/val/1.png: changed since" in capsys.readouterr().err


REFUSED = {
    "zero is open": (
        [0, 1, 2, 255],
        (),
        "the annotations have the values 0 to 2, 255 for 3 classes; write which is right: "
        "`reduce_zero_label: false` means 0 stem, 1 leaf, 2 flower; 255 ignored, "
        "`reduce_zero_label: true` means 1 stem, 2 leaf; 0 and 255 ignored",
    ),
    "only one answer fits": (
        [0, 1, 3],
        (),
        "`reduce_zero_label: false` leaves 3 without a meaning",
    ),
    "values without a meaning": (
        [0, 1, 9],
        ("--reduce-zero-label=false",),
        "has value 9; only 0 to 2, 255 mean anything",
    ),
    "two ways to ignore": (
        [0, 1],
        ("--reduce-zero-label=true", "--ignore-index=2"),
        "ignore_index: 2 does not go with reduce_zero_label",
    ),
}


@pytest.mark.parametrize(("values", "options", "reason"), REFUSED.values(), ids=REFUSED)
def test_labels_that_mean_nothing_are_refused(values, options, reason, tmp_path, capsys):
    root = make_folder(tmp_path / "leaves", values, LEAVES)
    manifest, said = prepare(capsys, root, "folder", *options)
    assert manifest is None
    assert reason in said
    assert said.count("\n") - said.startswith("verify: 9/9") == 1


def test_data_that_is_not_as_described_is_refused_in_one_line(tmp_path, capsys):
    root = make_folder(tmp_path / "leaves", [0, 1], ["a"])
    answers = {}
    for name, kind, options in (
        ("unknown", "CityscapeDataset", ()),
        ("joined", "ConcatDataset", ()),
        ("layout", "CityscapesDataset", ()),
        ("double", "folder", (f"--classes={tmp_path / 'double.txt'}",)),
        ("color", "folder", (f"--classes={tmp_path / 'color.json'}",)),
    ):
        (tmp_path / "double.txt").write_text("a\na\n")
        (tmp_path / "color.json").write_text('[{"name": "a", "color": [1, 2]}]')
        manifest, answers[name] = prepare(capsys, root, kind, *options)
        assert manifest is None
        assert answers[name].count("\n") - ("verify: " in answers[name]) == 1
    assert "nearest: CityscapesDataset" in answers["unknown"]
    assert "'ConcatDataset' is no segmentation data set" in answers["joined"]
    assert "folder leftImg8bit/train is missing" in answers["layout"]
    assert "names the class 'a' twice" in answers["double"]
    assert "the color of 'a' must be three numbers" in answers["color"]


JOINED = """
_base_ = "{config}"
part = dict(
    type="ADE20KDataset",
    data_root="{root}",
    data_prefix=dict(img_path="images/training", seg_map_path="annotations/training"),
    pipeline=_base_.train_pipeline,
)
train_dataloader = dict(dataset=dict(_delete_=True, type="ConcatDataset", datasets=[part, part]))
seen = dict(
    part,
    data_prefix=dict(img_path="images/validation", seg_map_path="annotations/validation"),
    pipeline=_base_.test_pipeline,
)
val_dataloader = dict(dataset=dict(_delete_=True, type="ConcatDataset", datasets=[seen, seen]))
test_dataloader = val_dataloader
"""


def test_joined_data_sets_of_a_config_train_and_predict_with_the_classes_of_the_first(
    config, manifest, tmp_path
):
    root = load_manifest(manifest).root
    (tmp_path / "joined.py").write_text(JOINED.format(config=config, root=root))
    job = job_in(tmp_path, tmp_path / "joined.py", None, 2)
    assert launch_train(job) == DONE
    (image, *_) = sorted((root / "images/validation").iterdir())
    (labels,) = predict(
        job.work_dir / "weights.pth", [image], tmp_path / "out", pictures=["labels"], device="cpu"
    )
    assert np.asarray(Image.open(labels)).min() >= 1  # as in the set's annotations


def test_class_weights_that_do_not_fit_are_refused(config, tmp_path, capsys):
    root = make_folder(tmp_path / "leaves", [0, 1, 2], LEAVES)
    manifest, _ = prepare(capsys, root, "folder", "--reduce-zero-label=false")
    command = ["train", str(config), f"--work-dir={tmp_path / 'run'}", f"--data={manifest}"]
    assert main([*command, "--device=cpu", "--options", "model.class_weights=[1,2]"]) == 2
    assert "class_weight has 2 entries for 3 classes" in capsys.readouterr().err

"""Data sets of a sheet: its own `data`, further ones under `datasets`, class weights."""

from pathlib import Path

import pytest

from cae_seg.errors import UserError
from cae_seg.sheet.reading import load_sheet

ROOT = Path(__file__).parents[2]
ROW = "{name: %s, backbone: ViT-B, pretraining_epochs: 1, learning_rate: 1e-4, checkpoint: a.pth%s}"


def sheet(folder: Path, head: str, *rows: str):
    path = folder / "sheet.yaml"
    lines = [ROW % (f"row{number}", row) for number, row in enumerate(rows)]
    path.write_text(f"{head}\nexperiments:\n" + "".join(f"  - {line}\n" for line in lines))
    return load_sheet(path, root=ROOT)


def test_rows_choose_among_several_data_sets(tmp_path):
    found = sheet(
        tmp_path,
        "datasets:\n"
        "  streets: {type: CityscapesDataset, source: /data/cityscapes}\n"
        "  leaves: {type: folder, source: /data/leaves, reduce_zero_label: false}",
        "",
        ", data: streets",
        ", data: leaves, class_weights: [1, 2.5]",
    )
    labels = [found.data_label(row) for row in found.experiments]
    assert labels == ["ADE20K", "streets", "leaves"]
    manifests = [str(data.manifest) for data in found.used_data]
    assert manifests == [f"data/{n}/manifest.json" for n in ("ade20k", "cityscapes", "leaves")]
    assert found.experiments[1].recipe_changes == ""
    assert found.experiments[2].recipe_changes == "class_weights 1 2.5"


@pytest.mark.parametrize(
    ("data", "label"),
    [
        ("", "ADE20K"),
        ("data: {type: PascalVOCDataset, source: a/VOC2012}", "PascalVOC"),
        ("data: {type: folder, source: a/leaves}", "leaves"),
    ],
)
def test_data_set_without_a_name_is_called_after_what_it_is(tmp_path, data, label):
    found = sheet(tmp_path, data, "")
    assert found.data_label(found.experiments[0]) == label


@pytest.mark.parametrize(
    ("head", "row", "message"),
    [
        ("", ", data: street", "row0.*data: 'street' is not under `datasets`; there is none"),
        ("data: {type: folder}", "", "data: type folder needs its folder as `source`"),
        ("data: {ignore_index: 0}", "", "data: ignore_index is for other data sets"),
        ("data: {ignore_index: 256}", "", "data.ignore_index: 256"),
        ("datasets: {a: {sourse: b}}", "", "sourse: is no key of a sheet; did you mean source"),
        (
            "datasets: {a: {root: data/x}, b: {type: folder, source: x}}",
            ", data: a}\n  - {name: row1, backbone: ViT-B, pretraining_epochs: 1, "
            "learning_rate: 1e-4, checkpoint: a.pth, data: b",
            "row1.*two data sets have the root data/x",
        ),
        (
            "data: {type: LoveDADataset, source: x, classes: c.txt}",
            "",
            "classes is for `type: folder`; LoveDADataset has its own",
        ),
        ("", ", class_weights: [1, -1]", "class_weights"),
    ],
)
def test_data_that_cannot_be_meant_is_refused_with_its_line(tmp_path, head, row, message):
    with pytest.raises(UserError, match=message) as refusal:
        sheet(tmp_path, head, row)
    assert "\n" not in str(refusal.value)

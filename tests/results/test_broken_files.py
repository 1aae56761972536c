"""Files of a run that were damaged, edited or exchanged: no wrong number passes in silence."""

import hashlib
import json
import os
from pathlib import Path

import pytest
from fake_runs import make_row, make_run, make_sheet, start_run

from cae_seg.cli import main
from cae_seg.engine.checkpoint_report import known_sha256
from cae_seg.errors import UserError
from cae_seg.results.aggregate import aggregate
from cae_seg.results.aggregate_seeds import aggregate_seeds
from cae_seg.results.collect import collect_runs
from cae_seg.results.report_pages import write_run_pages
from cae_seg.run.paths import RunDir, read_history

SHAPES = ["", "{}", "[]", "[1, 2]", "null", "12", '"text"', "{", "[" * 100_000, "9" * 5000, "NaN"]


@pytest.fixture
def run(tmp_path) -> Path:
    return make_run(tmp_path / "results" / "a" / "seed_0", "a", 0)


def notes(tmp_path: Path, seeds=(0,)) -> str:
    sheet = make_sheet(tmp_path / "results", [make_row("a", seeds=seeds)])
    (row,) = aggregate(collect_runs(sheet)).to_dict("records")
    assert row["comparable"] == (row["notes"] == "")
    return row["notes"]


def edit(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("text", SHAPES, ids=lambda text: text[:8] or "empty")
@pytest.mark.parametrize("name", ["metrics.json", "run.json"])
def test_json_of_another_shape_is_one_line_that_names_the_file(run, tmp_path, name, text):
    (run / name).write_text(text)
    with pytest.raises(UserError, match=name) as caught:
        notes(tmp_path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


WRONG = {
    "mIoU": [101, -1, "48", None, True, 1e400, [48]],
    "mAcc": [1e9, {}],
    "per_class": [None, {}, [1], [{"name": "x"}], [{"name": "x", "IoU": 300, "Acc": 1}]],
    "images": [0, -5, 2.5, "2000"],
    "weights_sha256": ["", "xyz", None, 5],
    "seed": [-1, "0", None, 0.5],
    "code": [5, "x", {"dirty": "no"}],
    "aug_test": ["yes", 1],
}


PARTS = ["device", "batch", "code", "checkpoint", "data", "versions", "crop", "normalisation"]


@pytest.mark.parametrize("key", PARTS)
def test_a_null_in_metadata_is_a_part_that_is_missing(run, tmp_path, key):
    edit(run / "run.json", **{key: None})
    sheet = make_sheet(tmp_path / "results", [make_row("a")])
    assert aggregate(collect_runs(sheet))["mIoU"].tolist() == [48.0]
    write_run_pages(sheet, tmp_path / "pages")


@pytest.mark.parametrize(("key", "value"), [(k, v) for k, values in WRONG.items() for v in values])
def test_a_value_out_of_range_is_refused_with_its_key(run, tmp_path, key, value):
    edit(run / "metrics.json", **{key: value})
    with pytest.raises(UserError, match=rf"metrics\.json: {key}.*delete the file and evaluate"):
        notes(tmp_path)


METADATA = {
    "iterations": [None, "x", -1],
    "device": [5, {"type": 1}],
    "batch": ["x", {"global_batch": "16"}],
    "crop": [5, ["x"]],
    "normalisation": [{"mean": 1, "std": 2}, {}],
    "accelerations": [None, "x"],
    "data": ["x", {"images": 5}],
    "seconds": [None, "x"],
    "gpu_hours": [-1, "x"],
    "weights": [[], {"path": 1}],
    "evaluations": [{}, [1]],
}


@pytest.mark.parametrize(
    ("key", "value"), [(k, v) for k, values in METADATA.items() for v in values]
)
def test_metadata_of_another_kind_are_refused_with_their_key(run, tmp_path, key, value):
    edit(run / "run.json", **{key: value})
    with pytest.raises(UserError, match=rf"run\.json: {key}"):
        notes(tmp_path)


def test_untouched_files_raise_no_doubt(run, tmp_path):
    assert notes(tmp_path) == ""


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        ({"mIoU": 58.0}, "mIoU is not the mean of its classes"),
        ({"experiment": "b"}, "metrics of the experiment 'b'"),
        ({"seed": 3}, "metrics of seed 3"),
    ],
)
def test_edited_metrics_are_noted_on_the_row(run, tmp_path, changes, note):
    edit(run / "metrics.json", **changes)
    assert note in notes(tmp_path)


def test_a_seed_that_counts_twice_is_noted(run, tmp_path):
    other = make_run(run.with_name("seed_1"), "a", 1)
    assert notes(tmp_path, (0, 1)) == ""
    (other / "metrics.json").write_text((run / "metrics.json").read_text())
    found = notes(tmp_path, (0, 1))
    assert "metrics of seed 0" in found
    assert "seeds 0 1 have the same weights" in found


def test_weights_exchanged_after_the_evaluation_are_noted(run, tmp_path):
    weights = run / "work" / "weights.pth"
    weights.write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    edit(run / "metrics.json", weights_sha256=digest)
    metadata = json.loads((run / "run.json").read_text())
    edit(run / "run.json", weights=metadata["weights"] | {"sha256": digest})
    os.utime(weights, ns=(0, (run / "metrics.json").stat().st_mtime_ns + 10**9))
    assert notes(tmp_path) == ""  # touched only
    weights.write_bytes(b"others!")
    os.utime(weights, ns=(0, (run / "metrics.json").stat().st_mtime_ns + 10**9))
    assert "weights changed since the evaluation" in notes(tmp_path)


def test_one_seed_is_not_joined_twice(run, tmp_path):
    with pytest.raises(UserError, match="of one seed"):
        aggregate_seeds([run / "metrics.json"] * 2, tmp_path / "out.json")


LINES = [
    "",
    "x",
    "[]",
    '{"kind": "train", "time": 1}',
    '{"kind": "train", "time": 1, "iteration": "2"}',
    '{"kind": "train", "time": "x", "iteration": 2}',
    '{"kind": "train", "time": NaN, "iteration": 2}',
    '{"kind": "event", "time": 1}',
    '{"kind": ["a"], "time": 1}',
    '{"kind": "other", "time": 1}',
    "[" * 100_000,
    "\udcff",
]


def test_lines_of_another_shape_are_skipped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    good = '{"kind": "train", "time": 1.5, "iteration": 2, "loss": 1.0}'
    path.write_bytes("\n".join([*LINES, good, *LINES]).encode(errors="surrogateescape"))
    record = read_history(path)
    assert list(record.train) == [2]
    assert not record.evaluations
    assert not record.events


def test_the_metadata_of_a_run_that_just_began_have_the_expected_shape(tmp_path):
    assert RunDir(start_run(tmp_path / "r")).metadata()["iterations"] == 200


NOTES = {
    "work/failure.json": '{"time": "x", "error": []}',
    "work/writer.lock.json": '{"host": 3, "pid": "x", "slurm_job_id": {}}',
    "work/summary.json": '{"identity": 5, "weights": 1}',
    "tracked.json": '{"labels": [], "delivered": 1}',
    "work/run_metadata.json": '{"identity": 5, "iterations": "x"}',
}


@pytest.mark.parametrize("name", NOTES)
def test_a_damaged_note_of_a_run_ends_no_command(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///")  # nothing is delivered
    Path("recipe.py").write_text("")
    row = "name: a, backbone: ViT-B, pretraining_epochs: 1, checkpoint: c.pth, learning_rate: 1e-4"
    Path("sheet.yaml").write_text(f"experiments: [{{{row}, config: recipe.py}}]\n")
    folder = start_run(Path("results/a/seed_0"), "a")
    for text in (*SHAPES, NOTES[name]):
        (folder / name).write_text(text)
        assert main(["status", "--sheet", "sheet.yaml"]) == 0
        assert main(["table", "--sheet", "sheet.yaml", "--partial"]) == 0
        assert main(["clean"]) == 0
        if name != "work/run_metadata.json":
            assert main(["track", str(folder)]) == 0
    if name == "work/run_metadata.json":
        assert main(["track", str(folder)]) == 2
        assert "run_metadata.json: " in capsys.readouterr().err
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("text", [*SHAPES, '{"path": 1}', '{"path": "c.pth"}'])
def test_a_damaged_report_of_a_checkpoint_is_one_line(text, tmp_path):
    (tmp_path / "checkpoint.json").write_text(text)
    with pytest.raises(UserError, match=r"checkpoint\.json: "):
        known_sha256(tmp_path / "checkpoint.json")

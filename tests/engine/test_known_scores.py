"""An evaluation is not repeated unless something that its scores depend on has changed."""

import json
import shutil

import pytest

from cae_seg.cli import main


@pytest.fixture
def run(undisturbed, tmp_path):
    """A finished run of the test's own, not evaluated yet."""
    unknown = shutil.ignore_patterns("scores*.json")
    shutil.copytree(undisturbed.work_dir, tmp_path / "work", ignore=unknown)
    return tmp_path / "work"


def evaluate(run, undisturbed, *options: str, out: str = "metrics.json") -> dict:
    metrics = run.parent / out
    metrics.unlink(missing_ok=True)
    words = ["evaluate", str(run / "config.py"), str(run / "weights.pth")]
    data = ["--data", str(undisturbed.data), "--device", "cpu", "--out", str(metrics)]
    assert main([*words, *data, *options]) == 0
    return json.loads(metrics.read_text())


def test_the_same_evaluation_is_not_repeated(run, undisturbed, capfd):
    first = evaluate(run, undisturbed)
    assert "measured before" not in capfd.readouterr().err
    assert evaluate(run, undisturbed) == first  # seconds included
    assert f"measured before; to repeat it, delete {run / 'scores.json'}" in capfd.readouterr().err


@pytest.mark.parametrize(
    "options",
    [
        ["--cfg-options", "evaluation_precision=tf32"],
        ["--cfg-options", "model.test_cfg.stride=(11,11)"],
        ["--aug-test"],
        ["--name", "other"],
        ["--seed", "3"],
    ],
    ids=" ".join,
)
def test_other_settings_are_measured(run, undisturbed, options, capfd):
    evaluate(run, undisturbed)
    evaluate(run, undisturbed, *options)
    assert "measured before" not in capfd.readouterr().err


def test_other_code_and_a_damaged_note_are_measured(run, undisturbed, capfd, monkeypatch):
    evaluate(run, undisturbed)
    monkeypatch.setattr("cae_seg.run.provenance.code_fingerprint", lambda: "f" * 64)
    evaluate(run, undisturbed)
    note = json.loads((run / "scores.json").read_text())
    (run / "scores.json").write_text(json.dumps(note | {"metrics": {"mIoU": 99}}))
    evaluate(run, undisturbed)
    assert "measured before" not in capfd.readouterr().err


def test_pictures_are_drawn_all_the_same(run, undisturbed, tmp_path):
    evaluate(run, undisturbed)
    evaluate(run, undisturbed, "--show-dir", str(tmp_path / "drawn"))
    assert list((tmp_path / "drawn").rglob("*.png"))


def test_weights_from_elsewhere_leave_nothing_beside_them(run, undisturbed, tmp_path):
    (tmp_path / "other").mkdir()
    shutil.copy(run / "weights.pth", tmp_path / "other" / "weights.pth")
    words = ["evaluate", str(run / "config.py"), str(tmp_path / "other" / "weights.pth")]
    assert main([*words, "--data", str(undisturbed.data), "--device", "cpu"]) == 0
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["weights.pth"]

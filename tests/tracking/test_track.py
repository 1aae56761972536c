import json
import logging
import shutil
import sqlite3

import pytest
import tracked
from fake_runs import (
    BEGUN,
    evaluate_run,
    event_line,
    finish_run,
    make_run,
    record_lines,
    start_run,
    train_line,
    write_lines,
)
from tracked import active_runs, answer, artifact_names, assert_whole, only_run

from cae_seg.errors import UserError
from cae_seg.tracking import ensure_store, track, tracking_uri
from cae_seg.tracking.models import fetch_weights


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "results" / "row" / "seed_0")


def test_a_run_arrives_whole(run, store):
    result = track(run, uri=store)
    found = only_run(store)
    assert_whole(store, found)
    assert result == answer(run)
    assert result["delivered"] is True
    assert result["run_id"] == found.info.run_id
    assert found.info.status == "FINISHED"
    assert found.info.start_time == BEGUN * 1000
    assert found.info.end_time == (BEGUN + 101) * 1000
    assert found.data.metrics["mIoU"] == 48.0
    assert not any(name.startswith("final/") for name in found.data.metrics)


def test_scores_are_shown_with_two_decimals_and_kept_whole_in_the_files(run, store):
    finish_run(run, miou=59.54755019)
    evaluate_run(run, miou=59.54755019)
    track(run, uri=store)
    found = only_run(store)
    shown = [found.data.metrics[name] for name in ("mIoU", "mAcc", "aAcc")]
    assert shown == [59.55, 69.55, 89.55]
    curve = [value for _, _, value in tracked.curve(store, found, "mIoU")]
    assert curve == [52.05, 54.55, 57.05, 59.55]
    assert json.loads((run / "metrics.json").read_text())["mIoU"] == 59.54755019
    assert track(run, uri=store)["points_sent"] == 0


def test_what_decides_a_run_is_a_parameter_and_what_carried_it_a_tag(run, store):
    track(run, uri=store)
    data = only_run(store).data
    assert data.params == {
        "learning_rate": "0.0001",
        "layer_decay": "0.65",
        "drop_path": "0.1",
        "seed": "0",
        "batch": "16",
        "iterations": "200",
        "deterministic": "False",
        "config": "made_up",
        "data_fingerprint": "d" * 64,
        "checkpoint_sha256": "c" * 64,
        "checkpoint_path": "checkpoints/made_up.pth",
    }
    expected = {
        "precision": "fp16",
        "device": "Made Up 80GB",
        "device_count": "2",
        "batch_split": "2 × 8, micro-batch 4, accumulation 2",
        "slurm_job_ids": "4711",
        "git_commit": "a" * 40,
        "git_dirty": "False",
        "versions": '{"torch": "2.11.0", "mmseg": "1.4.2"}',
        "experiment": "row",
    }
    assert expected.items() <= data.tags.items()


SHEET = """
experiments:
  - {name: row, backbone: ViT-B, pretraining_epochs: 800, checkpoint: a.pth, learning_rate: 1.0e-4,
     config: recipe.py, published_miou: 49.7}
"""


def test_the_sheet_gives_backbone_and_pretraining_and_is_remembered(run, store, tmp_path):
    (tmp_path / "recipe.py").write_text("")
    sheet = tmp_path / "sheet.yaml"
    sheet.write_text(SHEET)
    track(run, sheet=sheet, uri="sqlite:////dev/null/mlflow.db")
    assert not answer(run)["delivered"]
    track(run, uri=store)
    data = only_run(store).data
    labels = ("backbone", "pretraining_method", "pretraining_epochs", "head", "learning_rate")
    assert [data.params[name] for name in labels] == ["ViT-B", "CAE", "800", "recipe", "1.0e-4"]
    assert data.params["data"] == "ADE20K"
    assert data.tags["published_miou"] == "49.7"


def test_files_are_shown_with_the_run(run, store):
    picture = run / "work" / "visualizations" / "iter_50" / "image.png"
    picture.parent.mkdir(parents=True)
    picture.write_bytes(b"picture")
    track(run, uri=store)
    assert artifact_names(store, only_run(store)) == {
        "config.py",
        "environment.json",
        "log/train.log",
        "metrics.json",
        "visualizations/iter_50/image.png",
        "per_class.csv",
        "per_class.png",
        "run.json",
    }


def test_tracking_again_changes_nothing(run, store):
    first = track(run, uri=store)
    again = track(run, uri=store)
    assert (again["run_id"], again["points_sent"]) == (first["run_id"], 0)
    assert_whole(store, only_run(store))


def test_a_delivery_cut_off_anywhere_is_completed(run, store, monkeypatch):
    from mlflow import MlflowClient

    monkeypatch.setattr("cae_seg.tracking.sync.BATCH", 30)
    send = MlflowClient.log_batch
    for allowed in range(1, 9):
        calls = iter(range(allowed))

        def fails(*arguments, calls=calls, **named):
            if next(calls, None) is None:
                raise ConnectionError("cut off")
            return send(*arguments, **named)

        monkeypatch.setattr(MlflowClient, "log_batch", fails)
        result = track(run, uri=store, patience=0)
        if result["delivered"]:
            break
    monkeypatch.setattr(MlflowClient, "log_batch", send)
    assert track(run, uri=store)["delivered"]
    assert_whole(store, only_run(store))


def test_a_batch_that_arrived_without_an_answer_is_not_doubled(run, store, monkeypatch):
    from mlflow import MlflowClient

    send = MlflowClient.log_batch

    def arrives_but_fails(*arguments, **named):
        send(*arguments, **named)
        if named.get("metrics"):
            raise ConnectionError("no answer")

    monkeypatch.setattr(MlflowClient, "log_batch", arrives_but_fails)
    assert not track(run, uri=store, patience=0)["delivered"]
    monkeypatch.setattr(MlflowClient, "log_batch", send)
    assert track(run, uri=store)["delivered"]
    assert_whole(store, only_run(store))


def test_iterations_trained_twice_are_one_point_each(tmp_path, store):
    run = start_run(tmp_path / "results" / "row" / "seed_0")
    record = run / "work" / "metrics.jsonl"
    write_lines(record, record_lines(120))
    track(run, uri=store)
    record.write_text(record.read_text() + '{"kind": "train", "iterat')
    record.write_text(record.read_text() + "\n")
    write_lines(record, [event_line("resume", 100, late=50)])
    write_lines(record, [train_line(iteration, late=50) for iteration in (110, 120, 130)])
    track(run, uri=store)
    points = tracked.curve(store, only_run(store), "train/loss")
    assert [step for step, _, _ in points] == list(range(10, 140, 10))


def test_a_run_trained_again_takes_the_place_of_the_old_one(run, store):
    first = track(run, uri=store)["run_id"]
    record = run / "work" / "metrics.jsonl"
    record.unlink()
    lines = [line | {"time": line["time"] + 5000} for line in record_lines(200, miou=50.0)]
    write_lines(record, lines)
    finish_run(run, miou=50.0, lines=False)
    evaluate_run(run, miou=50.0)
    second = track(run, uri=store)["run_id"]
    assert second != first
    found = only_run(store)
    assert found.data.metrics["mIoU"] == 50.0
    assert tracked.curve(store, found, "mIoU") == tracked.expected("mIoU", lines)


def test_a_run_whose_work_is_gone_is_still_the_same_run(run, store):
    first = track(run, uri=store)["run_id"]
    for path in (run / "work").iterdir():
        path.unlink()
    evaluate_run(run, miou=47.5)
    assert track(run, uri=store)["run_id"] == first
    found = only_run(store)
    assert found.data.metrics["mIoU"] == 47.5
    *during, last = tracked.curve(store, found, "mIoU")
    assert during == tracked.expected("mIoU", record_lines(200))
    assert (last[0], last[2]) == (200, 47.5)


def test_the_same_recipe_under_two_names_or_seeds_is_two_runs(tmp_path, store):
    identity = {"identity": "1" * 64}
    for name in ("row", "other"):
        run = make_run(tmp_path / "results" / name / "seed_0", name, **identity)
        track(run, uri=store)
    assert len(active_runs(store)) == 2


def test_what_changed_between_attempts_does_not_break_tracking(run, store):
    track(run, uri=store)
    metadata = json.loads((run / "run.json").read_text())
    metadata |= {"drop_path": 0.2, "device": {"type": "cuda", "name": "Other", "count": 4}}
    (run / "run.json").write_text(json.dumps(metadata))
    assert track(run, uri=store)["delivered"]
    data = only_run(store).data
    assert (data.params["drop_path"], data.tags["now.drop_path"]) == ("0.1", "0.2")
    assert data.tags["device_count"] == "4"


def test_an_abandoned_run_of_the_folder_is_closed(tmp_path, store):
    run = start_run(tmp_path / "results" / "row" / "seed_0", learning_rate=1e-3)
    write_lines(run / "work/metrics.jsonl", record_lines(50))
    track(run, uri=store)
    (run / "work/metrics.jsonl").unlink()
    make_run(run)
    track(run, uri=store)
    assert sorted(one.info.status for one in active_runs(store)) == ["FINISHED", "KILLED"]


def test_a_folder_of_runs_is_delivered_at_once(tmp_path, store):
    results = tmp_path / "results"
    for seed in (0, 1):
        make_run(results / "row" / f"seed_{seed}", "row", seed)
    alone = start_run(results / "alone" / "seed_0", "alone")
    result = track(results, uri=store, out=tmp_path / "all.json")
    assert len(result["runs"]) == 3
    assert len(active_runs(store)) == 3
    assert answer(alone)["delivered"]
    assert json.loads((tmp_path / "all.json").read_text()) == result


def test_a_folder_without_runs_is_a_mistake(tmp_path, store):
    with pytest.raises(UserError, match="no run here"):
        track(tmp_path, uri=store)


def test_nan_is_kept_and_null_left_out(tmp_path, store):
    run = start_run(tmp_path / "results" / "row" / "seed_0")
    lines = [train_line(10) | {"grad_norm": None}, train_line(20) | {"loss": float("inf")}]
    write_lines(run / "work/metrics.jsonl", [event_line("start", 0), *lines])
    assert track(run, uri=store)["delivered"]
    found = only_run(store)
    assert len(tracked.curve(store, found, "train/gradient_norm")) == 1
    assert len(tracked.curve(store, found, "train/loss")) == 2


def test_the_embedded_store_is_the_default_and_an_address_is_honoured(tmp_path, monkeypatch):
    assert tracking_uri() == f"sqlite:///{tmp_path}/results/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracker:5000")
    assert tracking_uri() == "http://tracker:5000"


def test_passwords_stay_secret(run, caplog):
    with caplog.at_level(logging.WARNING):
        result = track(run, uri="http://me:hush@127.0.0.1:9/", patience=0)
    assert not result["delivered"]
    assert result["uri"] == "http://***@127.0.0.1:9/"
    assert "hush" not in caplog.text + json.dumps(result)


def test_an_old_store_is_kept_when_it_is_upgraded(store, run, tmp_path):
    track(run, uri=store)
    database = tmp_path / "results" / "mlflow.db"
    with sqlite3.connect(database) as connection:
        connection.execute("UPDATE alembic_version SET version_num = version_num")
    (tmp_path / "results" / "mlflow.db.ready").write_text("{}")
    ensure_store(store)
    assert not (tmp_path / "results" / "mlflow.db.before-upgrade").exists()
    assert_whole(store, only_run(store))


def test_a_copied_store_is_read_and_written_in_its_new_place(run, store, tmp_path, monkeypatch):
    first = track(run, uri=store)["run_id"]
    shutil.copytree(tmp_path / "results", tmp_path / "copy")
    shutil.rmtree(tmp_path / "results" / "mlartifacts")
    moved = f"sqlite:///{tmp_path / 'copy' / 'mlflow.db'}"
    assert "run.json" in artifact_names(moved, only_run(moved))
    evaluate_run(run, miou=49.0)
    assert track(run, uri=moved)["run_id"] == first
    metrics = tmp_path / "copy" / "mlartifacts" / first / "artifacts" / "metrics.json"
    assert json.loads(metrics.read_text())["mIoU"] == 49.0
    assert not (tmp_path / "results" / "mlartifacts").exists()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", moved)
    assert fetch_weights(f"runs:/{first}/model").is_relative_to(tmp_path / "copy")

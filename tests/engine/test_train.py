"""One run end to end: the same numbers however it is run, and whatever interrupts it."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from interruptions import StopAfter, losses, same, weights
from mmengine.dataset import BaseDataset

from cae_seg.engine.acceleration import REPLACEMENTS
from cae_seg.engine.job import DONE, STOPPED, EvaluateJob, TrainJob
from cae_seg.errors import UserError
from cae_seg.launch import rank
from cae_seg.launch.launcher import launch_evaluate, launch_train
from cae_seg.models.accelerate import FAST_PATHS
from cae_seg.run.checkpoints import save_checked
from cae_seg.run.deadline import StopSignal
from cae_seg.run.paths import read_history


@pytest.fixture
def copied(undisturbed, tmp_path) -> TrainJob:
    """A finished run that a test may change."""
    folder = shutil.copytree(undisturbed.out.parent, tmp_path / "copied")
    return dataclasses.replace(undisturbed, work_dir=folder / "work", out=folder / "run.json")


def test_run_leaves_what_the_workflow_declares(undisturbed):
    run = json.loads(undisturbed.out.read_text())
    assert run["schema"] == 3
    assert run["iterations"] == 8
    assert run["batch"] == {
        "global_batch": 16,
        "batch_per_rank": 16,
        "micro_batch": 16,
        "accumulation": 1,
        "ranks": 1,
    }
    assert (undisturbed.out.parent / run["weights"]["path"]).is_file()
    assert (undisturbed.out.parent / "config.py").is_file()
    assert [line["iteration"] for line in run["evaluations"]] == [5, 8]
    assert run["data"]["images"] == {"training": 20, "validation": 5}
    assert run["precision"] == "fp32"
    assert len(losses(undisturbed)) == 8
    assert not (undisturbed.work_dir / "checkpoints").exists()


def test_same_seed_gives_the_same_run_with_any_number_of_workers(make_job, undisturbed):
    other = make_job("workers", workers=4)
    assert launch_train(other) == DONE
    assert losses(other) == losses(undisturbed)
    assert same(weights(other), weights(undisturbed))


def test_acceleration_has_a_key_and_the_metadata_lists_what_is_on(make_job):
    # Without dropout: stock heads draw its masks from another stream of random numbers.
    plain = {"model.decode_head.dropout_ratio": 0, "model.auxiliary_head.dropout_ratio": 0}
    jobs = [
        make_job("fast", cfg_options=plain),
        make_job("stock", cfg_options=plain | {"acceleration": False}),
    ]
    assert [launch_train(job) for job in jobs] == [DONE, DONE]
    fast, slow = (json.loads(job.out.read_text()) for job in jobs)
    assert slow["accelerations"] == []
    assert fast["accelerations"] == [*REPLACEMENTS, *FAST_PATHS]
    assert slow["identity"] != fast["identity"]
    assert losses(jobs[1]) == pytest.approx(losses(jobs[0]), rel=1e-4)


def test_other_seed_gives_another_run(make_job, undisturbed):
    other = make_job("seed", seed=1)
    assert launch_train(other) == DONE
    assert losses(other) != losses(undisturbed)


def test_stopped_anywhere_and_gone_on_is_bit_identical(make_job, undisturbed):
    job = make_job("stopped")
    codes = []
    for looks in (2, 1, 4, 3, 9, 100):
        codes.append(rank.run(job, "cpu", StopAfter(looks)))
        if codes[-1] == DONE:
            break
    assert codes.count(STOPPED) >= 3
    assert codes[-1] == DONE
    assert same(weights(job), weights(undisturbed))
    assert losses(job) == losses(undisturbed)
    assert (job.work_dir / "weights.pth").read_bytes() == (
        undisturbed.work_dir / "weights.pth"
    ).read_bytes()
    run = json.loads(job.out.read_text())
    assert run["attempts"] == len(codes)
    assert run["evaluations"] == json.loads(undisturbed.out.read_text())["evaluations"]


def test_signal_loses_no_iteration(make_job):
    job = make_job("signal")
    assert rank.run(job, "cpu", StopAfter(2)) == STOPPED
    done = max(read_history(job.work_dir / "metrics.jsonl").train)
    assert (job.work_dir / "checkpoints" / f"iter_{done}.pth").is_file()
    assert rank.run(job, "cpu", StopSignal()) == DONE
    lines = (job.work_dir / "metrics.jsonl").read_text().splitlines()
    trained = [json.loads(line)["iteration"] for line in lines if '"train"' in line]
    assert trained == list(range(1, 9))


def test_finished_run_is_not_done_again(copied):
    before = copied.out.read_bytes()
    stamp = (copied.work_dir / "weights.pth").stat().st_mtime_ns
    copied.out.unlink()
    assert launch_train(copied) == DONE
    assert copied.out.read_bytes() == before
    assert (copied.work_dir / "weights.pth").stat().st_mtime_ns == stamp


def test_damaged_weights_are_named_by_evaluation_and_made_again_by_training(copied):
    file = copied.work_dir / "weights.pth"
    whole = file.read_bytes()
    middle = len(whole) // 2
    file.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    evaluation = EvaluateJob(
        config=copied.out.parent / "config.py", weights=file, data=copied.data, device="cpu"
    )
    with pytest.raises(UserError, match=r"weights\.pth: damaged since .* repeat the training"):
        launch_evaluate(evaluation)
    assert launch_train(copied) == DONE
    assert file.read_bytes() == whole
    assert launch_evaluate(evaluation) == DONE


def test_a_config_or_a_picture_that_cannot_be_written_does_not_end_the_run(make_job, capfd):
    job = make_job("unwritable", iterations=2)
    (job.work_dir / "config.py" / "folder").mkdir(parents=True)  # which no privilege replaces
    (job.work_dir / "visualizations").touch()
    assert launch_train(job) == DONE
    told = [line for line in capfd.readouterr().err.splitlines() if "cannot be written" in line]
    assert [line.startswith(f"{job.work_dir}/config.py:") for line in told] == [True, False]
    assert told[1].startswith(f"{job.work_dir}/visualizations/iter_2")
    assert "optim_wrapper" in (job.out.parent / "config.py").read_text()


def test_other_recipe_moves_the_state_aside(make_job, copied):
    job = dataclasses.replace(copied, learning_rate="2e-3")
    assert launch_train(job) == DONE
    stale = list(copied.work_dir.parent.glob("work.stale-*"))
    assert len(stale) == 1
    assert (stale[0] / "weights.pth").is_file()
    assert json.loads(job.out.read_text())["learning_rate"] == 2e-3


def test_the_load_of_the_machine_is_recorded(undisturbed):
    (line,) = read_history(undisturbed.work_dir / "metrics.jsonl").system.values()
    assert line["iteration"] == 1
    assert 0 <= line["cpu_utilization_percentage"] <= 100
    assert line["system_memory_usage_megabytes"] > 100


def test_micro_batches_are_recorded(make_job):
    job = make_job("micro", iterations=2, images_per_gpu=5)
    assert launch_train(job) == DONE
    batch = json.loads(job.out.read_text())["batch"]
    assert (batch["micro_batch"], batch["accumulation"], batch["batch_per_rank"]) == (4, 4, 16)


def test_evaluate_repeats_the_last_evaluation_of_training(undisturbed, tmp_path):
    job = EvaluateJob(
        config=undisturbed.out.parent / "config.py",
        weights=undisturbed.work_dir / "weights.pth",
        data=undisturbed.data,
        device="cpu",
        out=tmp_path / "metrics.json",
        name="row",
    )
    assert launch_evaluate(job) == DONE
    metrics = json.loads(job.out.read_text())
    last = json.loads(undisturbed.out.read_text())["evaluations"][-1]
    assert {key: metrics[key] for key in ("mIoU", "mAcc", "aAcc")} == {
        key: last[key] for key in ("mIoU", "mAcc", "aAcc")
    }
    assert metrics["images"] == 5
    assert len(metrics["per_class"]) == 150
    assert metrics["experiment"] == "row"


def test_label_maps_and_paintings(undisturbed, tmp_path):
    job = EvaluateJob(
        config=undisturbed.config,
        weights=undisturbed.work_dir / "weights.pth",
        data=undisturbed.data,
        device="cpu",
        out=tmp_path / "labels.pkl",
        show_dir=tmp_path / "show",
        aug_test=True,
    )
    assert launch_evaluate(job) == DONE
    import pickle

    labels = pickle.loads(job.out.read_bytes())
    assert [label.shape for label in labels] == [(40, 64)] * 5
    assert len(list(job.show_dir.glob("*.png"))) == 5


def test_a_run_stopped_by_its_time_budget_resumes(make_job, undisturbed):
    job = make_job("budget", time_budget=1e-4)
    assert launch_train(job) == STOPPED
    assert not job.out.exists()
    assert launch_train(dataclasses.replace(job, time_budget=10)) == DONE
    assert same(weights(job), weights(undisturbed))


def test_truncated_newest_checkpoint_falls_back_on_the_one_before(make_job, undisturbed):
    job = make_job("truncated")
    rank.run(job, "cpu", StopAfter(5))
    kept = sorted(
        (job.work_dir / "checkpoints").glob("iter_*.pth"), key=lambda p: p.stat().st_mtime
    )
    assert len(kept) >= 2
    kept[-1].write_bytes(kept[-1].read_bytes()[:-1000])
    assert launch_train(job) == DONE
    assert same(weights(job), weights(undisturbed))
    events = read_history(job.work_dir / "metrics.jsonl").events
    assert any(e["event"] == "warning" and "truncated" in e["message"] for e in events)


def test_flipped_bit_in_a_checkpoint_is_noticed(make_job, undisturbed):
    job = make_job("flipped")
    rank.run(job, "cpu", StopAfter(5))
    newest = max((job.work_dir / "checkpoints").glob("iter_*.pth"), key=lambda p: p.stat().st_mtime)
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 4
    newest.write_bytes(content)
    assert launch_train(job) == DONE
    assert same(weights(job), weights(undisturbed))


def test_second_writer_is_refused(make_job, copied):
    import os
    import subprocess
    import sys

    lock = copied.work_dir / "writer.lock"
    code = (
        "import sys; from pathlib import Path; from cae_seg.locks import FileLock;"
        "print(FileLock(Path(sys.argv[1])).acquire(), flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(lock)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout.readline().strip() == "True"
        with pytest.raises(UserError, match=rf"process {holder.pid} on .* since"):
            launch_train(copied)
    finally:
        holder.kill()
        holder.wait()
    assert launch_train(copied) == DONE
    assert os.path.exists(lock)


def test_a_run_from_a_gpu_does_not_continue_on_the_cpu_unasked(copied):
    metadata = json.loads((copied.work_dir / "run_metadata.json").read_text())
    metadata["device"] = {"type": "cuda", "name": "NVIDIA H100", "count": 1}
    (copied.work_dir / "run_metadata.json").write_text(json.dumps(metadata))
    with pytest.raises(UserError, match="began on NVIDIA H100, but torch sees no GPU"):
        launch_train(dataclasses.replace(copied, device="auto"))
    assert launch_train(copied) == DONE


def test_a_run_of_an_earlier_version_is_named_and_left_alone(copied):
    metadata = json.loads((copied.work_dir / "run_metadata.json").read_text())
    (copied.work_dir / "facts.json").write_text(json.dumps(metadata | {"schema": 1}))
    for name in ("run_metadata.json", "summary.json"):
        (copied.work_dir / name).unlink()
    before = {path: path.read_bytes() for path in copied.work_dir.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match="run of an earlier version of cae-seg"):
        launch_train(copied)
    changed = {path.name for path in before if before[path] != path.read_bytes()}
    assert changed <= {"writer.lock", "writer.lock.json"}
    assert not list(copied.work_dir.parent.glob("work.stale-*"))


def test_late_resume_reads_the_images_of_its_own_iterations_only(make_job, monkeypatch):
    job = make_job(
        "late",
        iterations=150_002,
        cfg_options={
            "train_cfg.val_interval": 200_000,
            "default_hooks.checkpoint.interval": 150_001,
        },
    )
    rank.run(job, "cpu", StopAfter(2))
    path = next((job.work_dir / "checkpoints").glob("iter_*.pth"))
    state = torch.load(path, weights_only=True)
    state["meta"]["iteration"] = 150_000
    for scheduler in state["param_schedulers"]:
        scheduler["_global_step"] = scheduler["last_step"] = 150_000
    with path.with_name("iter_150000.pth").open("w+b") as stream:
        save_checked(state, stream)
    read = []
    prepare = BaseDataset.prepare_data
    monkeypatch.setattr(
        BaseDataset, "prepare_data", lambda self, index: read.append(index) or prepare(self, index)
    )
    assert rank.run(job, "cpu", StopAfter(1)) == STOPPED
    assert len(read) == 16  # one batch
    assert max(read_history(job.work_dir / "metrics.jsonl").train) == 150_001


def test_published_option_names_the_checkpoint(make_job, tmp_path):
    job = make_job("pretrained", cfg_options={"model.pretrained": str(tmp_path / "none.pth")})
    with pytest.raises(UserError, match="no such checkpoint"):
        launch_train(job)
    assert not job.work_dir.exists()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            "backbone=dict(type='CEA')",
            r"model.backbone.type: nothing is registered as CEA; nearest: CAE",
        ),
        (
            "type='EncoderDecodr'",
            r"nothing is registered as EncoderDecodr; nearest: EncoderDecoder",
        ),
        ("backbone=dict(wdith=3)", r"cannot be built \(.*wdith"),
        ("backbone=dict(out_indices=[0, 1])", r"cannot be built \(.*out_indices"),
    ],
)
def test_model_that_cannot_be_built_is_one_line(make_job, config, tmp_path, model, message):
    wrong = tmp_path / "wrong.py"
    wrong.write_text(f'_base_ = "{config}"\nmodel = dict({model})\n')
    job = make_job(config=wrong)
    with pytest.raises(UserError, match=message):
        launch_train(job)
    assert not job.work_dir.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            "model = dict(auxiliary_head=dict(num_classes=21))",
            r"model.auxiliary_head.num_classes is 21, but the data set .* has 150 classes",
        ),
        (
            "train_dataloader = dict(dataset=dict(metainfo=dict(classes=('a', 'b'))))",
            r"num_classes is 150, but the data set of train_dataloader has 2 classes",
        ),
        (
            "names = tuple(f'class {i}' for i in range(300))\n"
            "train_dataloader = dict(dataset=dict(metainfo=dict(classes=names)))",
            r"300 classes; annotations of 8 bits hold at most 255",
        ),
    ],
)
def test_other_classes_than_the_data_has_are_one_line(make_job, config, tmp_path, change, message):
    wrong = tmp_path / "wrong.py"
    wrong.write_text(f'_base_ = "{config}"\n{change}\n')
    job = make_job(config=wrong)
    with pytest.raises(UserError, match=message):
        launch_train(job)
    assert not job.work_dir.exists()


def test_config_with_an_error_in_it_is_one_line(make_job, tmp_path):
    wrong = tmp_path / "wrong.py"
    wrong.write_text("model = dict(\n")
    with pytest.raises(UserError, match=r"wrong.py: cannot be read"):
        launch_train(make_job(config=wrong))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PK\x03\x04 cut", "truncated"),
        (b"hello", "not a checkpoint"),
        (None, "no backbone under a known prefix"),
    ],
)
def test_pretrained_that_is_no_checkpoint_is_one_line(make_job, tmp_path, content, message):
    wrong = tmp_path / "wrong.pth"
    if content is None:
        torch.save({"model": {"x": torch.zeros(1)}}, wrong)
    else:
        wrong.write_bytes(content)
    job = make_job(pretrained=wrong)
    with pytest.raises(UserError, match=message):
        launch_train(job)
    assert not job.work_dir.exists()


@pytest.mark.parametrize("path", ["weights.pth", "missing.pth"])
def test_weights_of_another_architecture_or_missing(undisturbed, tmp_path, path):
    other = tmp_path / "other.py"
    other.write_text(
        f'_base_ = "{undisturbed.config}"\nmodel = dict(backbone=dict(embed_dim=24), '
        "decode_head=dict(in_channels=[24] * 4), auxiliary_head=dict(in_channels=24))\n"
    )
    job = EvaluateJob(
        config=other,
        weights=undisturbed.work_dir / path,
        device="cpu",
        data=undisturbed.data,
        out=tmp_path / "m.json",
    )
    with pytest.raises(UserError, match=r"backbone.cls_token is .*, not|no such checkpoint"):
        launch_evaluate(job)
    assert not job.out.exists()


def test_predict_paints_and_keeps_ade20k_values(undisturbed, tmp_path):
    import numpy as np
    from PIL import Image

    from cae_seg.data.prepare.manifest import load_manifest
    from cae_seg.engine.predict import predict

    images = Path(load_manifest(undisturbed.data).root) / "images" / "validation"
    weights = undisturbed.work_dir / "weights.pth"
    maps = predict(weights, [images], tmp_path / "out", pictures=["labels"], device="cpu")
    assert len(maps) == 5
    label = np.asarray(Image.open(maps[0]))
    assert label.shape == (40, 64)
    assert label.dtype == np.uint8
    assert 1 <= label.min() <= label.max() <= 150

"""The parts of the engine that need no model."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cae_seg.engine.batch import split_batch
from cae_seg.engine.job import EvaluateJob, TrainJob, decode, encode
from cae_seg.engine.precision import choose_precision
from cae_seg.engine.validate import parse_learning_rate, validate_job
from cae_seg.errors import UserError
from cae_seg.launch.gpus import acquire_gpus
from cae_seg.locks import FileLock
from cae_seg.machine import Placement, place
from cae_seg.run.checkpoints import Checkpoints, load_state, verify
from cae_seg.run.deadline import TimeBudget, deadline_of, slurm_end
from cae_seg.run.metrics_log import MetricsLogger, working_seconds
from cae_seg.run.paths import read_history

STATE = {"meta": {"iteration": 3}, "state_dict": {"w": torch.arange(5.0)}, "optimizer": {"lr": 0.1}}


@pytest.fixture
def hold():
    """Start processes that hold a lock until they are killed, each with a child as loaders are."""
    code = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from cae_seg.locks import FileLock\n"
        "assert FileLock(Path(sys.argv[1])).acquire()\n"
        "if not os.fork():\n"  # a child that reports has let go of the lock
        "    print(os.getpid(), flush=True)\n"
        "signal.pause()\n"
    )
    started = []

    def start(path) -> subprocess.Popen:
        command = [sys.executable, "-c", code, str(path)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        started.append((process, int(process.stdout.readline())))
        return process

    yield start
    for process, child in started:
        process.kill()
        process.wait()
        os.kill(child, signal.SIGKILL)


def test_jobs_travel_as_text(tmp_path):
    options = {"a.b": (1, 2.5, None), "c": "text with 'quotes'", "d": [True, {"e": 1}]}
    train = TrainJob(config=tmp_path / "c.py", work_dir=tmp_path, cfg_options=options)
    assert decode(encode(train)) == train
    test = EvaluateJob(
        config=tmp_path / "c.py", weights=tmp_path / "w.pth", out=tmp_path / "m.json"
    )
    assert decode(encode(test)) == test


def test_lock_excludes_and_a_killed_owner_frees_it_at_once(tmp_path, hold):
    holder = hold(tmp_path / "lock")
    lock = FileLock(tmp_path / "lock")
    assert not lock.acquire()
    assert f"process {holder.pid} on" in lock.owner()
    holder.kill()
    holder.wait()
    assert lock.acquire()
    assert not FileLock(tmp_path / "lock").acquire()
    assert FileLock(tmp_path / "lock").owner() == "this process"
    lock.release()
    assert FileLock(tmp_path / "lock").acquire()


def test_gpu_allocations_are_disjoint_and_a_crash_frees_them(tmp_path, hold):
    devices = [str(number) for number in range(8)]
    first = acquire_gpus(4, devices, tmp_path)
    second = acquire_gpus(4, devices, tmp_path)
    assert sorted(first.devices + second.devices) == devices
    first.release()
    assert acquire_gpus(4, devices, tmp_path).devices == first.devices
    second.release()
    holder = hold(tmp_path / f"gpu_{second.devices[0]}.lock")
    assert second.devices[0] not in acquire_gpus(3, second.devices, tmp_path).devices
    holder.kill()
    holder.wait()
    assert acquire_gpus(1, second.devices, tmp_path).devices == second.devices[:1]


def test_more_gpus_than_present():
    with pytest.raises(UserError, match="--gpus 4: only 2 present"):
        place("auto", 4, 2)
    with pytest.raises(UserError, match="only 2 present"):
        acquire_gpus(3, ["0", "1"])


@pytest.mark.parametrize(
    ("device", "gpus", "present", "expected"),
    [
        ("auto", None, 0, ("cpu", 1)),
        ("auto", None, 8, ("cuda", 1)),
        ("auto", 8, 8, ("cuda", 8)),
        ("cpu", 2, 8, ("cpu", 2)),
        ("cuda", 2, 2, ("cuda", 2)),
    ],
)
def test_placement(device, gpus, present, expected):
    assert place(device, gpus, present) == Placement(*expected)


def test_no_gpu_where_one_is_needed():
    with pytest.raises(UserError, match="torch sees no GPU"):
        place("cuda", None, 0)
    with pytest.raises(UserError, match="--gpus 8: torch sees no GPU here"):
        place("auto", 8, 0)
    with pytest.raises(UserError, match="SLURM gave GPUs"):
        place("auto", 2, 0, slurm=True)


def test_batch_is_kept_whatever_the_ranks():
    assert split_batch(16, 8, None).as_dict() == {
        "global_batch": 16,
        "batch_per_rank": 2,
        "micro_batch": 2,
        "accumulation": 1,
        "ranks": 8,
    }
    assert (split_batch(16, 1, 6).micro_batch, split_batch(16, 1, 6).accumulation) == (4, 4)
    with pytest.raises(UserError, match="cannot be shared evenly by 3"):
        split_batch(16, 3, None)
    with pytest.raises(UserError, match="batch norm needs two images"):
        split_batch(16, 1, 1)
    assert split_batch(16, 2, 1).accumulation == 8


def test_precision_by_device():
    assert choose_precision("auto", "cuda") == "fp16"
    assert choose_precision("auto", "cpu") == "fp32"
    assert choose_precision("bf16", "cuda") == "bf16"
    with pytest.raises(UserError, match="needs a GPU"):
        choose_precision("fp16", "cpu")
    with pytest.raises(UserError, match=r"apex is not installed; install its tag 25.04"):
        choose_precision("apex", "cuda")
    with pytest.raises(UserError, match="none of auto"):
        choose_precision("half", "cuda")


def test_apex_without_amp_is_distinguished_from_no_apex(tmp_path, monkeypatch):
    (tmp_path / "apex").mkdir()
    (tmp_path / "apex" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"has no apex\.amp"):
        choose_precision("apex", "cuda")
    (tmp_path / "apex" / "amp.py").touch()
    monkeypatch.delitem(sys.modules, "apex", raising=False)
    assert choose_precision("apex", "cuda") == "apex"


@pytest.mark.parametrize("text", ["much", "0", "-1e-4", "nan", "inf", ""])
def test_learning_rate_that_is_no_number(text):
    with pytest.raises(UserError, match="not a positive number"):
        parse_learning_rate(text)


@pytest.mark.parametrize(
    ("key", "argument"),
    [
        ("optim_wrapper.optimizer.lr", {"learning_rate": "1e-4"}),
        ("model.pretrained", {"pretrained": Path("x.pth")}),
        ("model.backbone.init_cfg.checkpoint", {"pretrained": Path("x.pth")}),
        ("precision", {"precision": "fp32"}),
        ("val_dataloader.dataset.data_root", {"data": Path("manifest.json")}),
        ("total_batch_size", {"batch_size": 4}),
    ],
)
def test_an_option_that_another_argument_replaces_is_refused(tmp_path, key, argument):
    config = tmp_path / "c.py"
    config.touch()
    job = TrainJob(config=config, work_dir=tmp_path, cfg_options={key: 1}, **argument)
    with pytest.raises(
        UserError, match=f"{key}: is replaced by --{next(iter(argument)).replace('_', '-')}"
    ):
        validate_job(job)


def test_folder_that_cannot_be_written(tmp_path):
    config = tmp_path / "c.py"
    config.touch()
    (tmp_path / "file").touch()
    job = TrainJob(config=config, work_dir=tmp_path / "file" / "work")
    with pytest.raises(UserError, match="is a file where a folder is needed"):
        validate_job(job)


def test_record_survives_a_torn_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    metrics = MetricsLogger(path)
    metrics.event("start", iteration=0)
    metrics.write("train", iteration=1, loss=2.0)
    with open(path, "a") as stream:
        stream.write('{"kind": "train", "iterat')
    metrics = MetricsLogger(path)
    metrics.write("train", iteration=1, loss=float("nan"))
    metrics.write("train", iteration=2, loss=1.0)
    found = read_history(path)
    assert found.train[1]["loss"] is None
    assert list(found.train) == [1, 2]
    for line in path.read_text().splitlines()[3:]:
        json.loads(line)


def test_working_time_leaves_out_the_pauses(tmp_path):
    metrics = MetricsLogger(tmp_path / "metrics.jsonl")
    moments = {0: "start", 10: None, 100: "resume", 105: None, 107: "finish"}
    for moment, event in moments.items():
        extra = {"event": event} if event else {}
        metrics.write("event" if event else "train", time=moment, iteration=moment, **extra)
    assert working_seconds(read_history(tmp_path / "metrics.jsonl")) == [(10, 1), (7, 1)]


def test_checkpoints_keep_two_and_tell(tmp_path):
    metrics = MetricsLogger(tmp_path / "metrics.jsonl")
    checkpoints = Checkpoints(tmp_path / "checkpoints", metrics)
    for iteration in (9, 10, 11):
        assert checkpoints.save(iteration, STATE).size > 0
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == [
        "iter_10.pth",
        "iter_11.pth",
    ]
    assert checkpoints.newest().name == "iter_11.pth"
    events = read_history(tmp_path / "metrics.jsonl").events
    assert [event["iteration"] for event in events] == [9, 10, 11]
    assert all(event["bytes"] > 0 and event["seconds"] >= 0 for event in events)
    assert torch.equal(
        load_state(checkpoints.newest())["state_dict"]["w"], STATE["state_dict"]["w"]
    )


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04" + bytes(500)])
def test_what_is_no_checkpoint_is_passed_over(tmp_path, content):
    checkpoints = Checkpoints(tmp_path, MetricsLogger(tmp_path / "metrics.jsonl"))
    checkpoints.save(1, STATE)
    (tmp_path / "iter_2.pth").write_bytes(content)
    with pytest.raises(UserError, match="no checkpoint"):
        verify(tmp_path / "iter_2.pth")
    assert checkpoints.newest().name == "iter_1.pth"
    assert (tmp_path / "iter_2.damaged").exists()


def test_half_written_file_is_swept_away(tmp_path):
    checkpoints = Checkpoints(tmp_path, MetricsLogger(None))
    (tmp_path / ".iter_2.pth.abc").write_bytes(b"half")
    checkpoints.sweep()
    assert list(tmp_path.iterdir()) == []


def test_full_disk_keeps_the_older_checkpoints(tmp_path):
    """A real file-size limit: the write fails in the middle, as on a full disk."""
    code = (
        "import resource, signal, sys, torch\n"
        "from pathlib import Path\n"
        "from cae_seg.run.checkpoints import Checkpoints\n"
        "from cae_seg.run.metrics_log import MetricsLogger\n"
        "folder = Path(sys.argv[1])\n"
        "checkpoints = Checkpoints(folder, MetricsLogger(folder / 'metrics.jsonl'))\n"
        "assert checkpoints.save(1, {'w': torch.zeros(10)})\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, -1))\n"
        "assert checkpoints.save(2, {'w': torch.zeros(1_000_000)}) is None\n"
        "assert checkpoints.newest().name == 'iter_1.pth'\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["iter_1.pth", "metrics.jsonl"]
    warning = read_history(tmp_path / "metrics.jsonl").events[-1]
    assert warning["event"] == "warning"
    assert "cannot be written" in warning["message"]


def test_budget_leaves_time_for_a_checkpoint():
    now = [0.0]
    budget = TimeBudget(100.0, save_seconds=10.0, clock=lambda: now[0])
    budget.update_step(1.0)
    assert not budget.should_stop()
    budget.update_save(40.0)
    budget.update_eval(30.0)
    assert not budget.should_stop()
    assert not budget.has_time_for_eval()
    now[0] = 40.0
    assert budget.should_stop()
    assert not TimeBudget(None).should_stop()


def test_deadline_is_the_earlier_of_budget_and_slurm(monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert deadline_of(None, 0.0) is None
    assert deadline_of(60, 0.0) == 3590
    assert deadline_of(0.1, 0.0) == pytest.approx(5.4)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_JOB_END_TIME", "1000")
    assert deadline_of(60, 0.0) == 990
    monkeypatch.delenv("SLURM_JOB_END_TIME")
    monkeypatch.setenv("PATH", "")
    assert slurm_end() is None


def test_waiting_for_a_lock_reports_the_owner_once_and_ends(tmp_path, hold):
    holder = hold(tmp_path / "lock")
    heard = []
    assert not FileLock(tmp_path / "lock").acquire(0.5, heard.append)
    assert len(heard) == 1
    assert f"process {holder.pid}" in heard[0]


def test_launcher_starts_without_loading_torch():
    code = "import sys, cae_seg.launch.launcher; print('torch' in sys.modules)"
    output = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    )
    assert output.stdout.strip() == "False"

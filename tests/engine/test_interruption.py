"""What happens to a run from outside: signals, kills, a full disk, a second writer.

Real processes through the console script, two ranks on the CPU under torchrun.
"""

import json
import random
import signal
import time

import psutil
import pytest
import torch
from interruptions import (
    finish,
    ranks_of,
    run,
    same,
    start,
    started_and_held,
    trained,
    weights,
)
from tiny_runs import job_in
from waiting import WAIT_SECONDS, wait_until

from cae_seg.engine.job import TrainJob
from cae_seg.run.paths import read_history

KILLS = 8


@pytest.fixture(scope="session")
def pair(tmp_path_factory, config, manifest) -> TrainJob:
    """An uninterrupted run on two ranks."""
    job = job_in(tmp_path_factory.mktemp("pair"), config, manifest, gpus=2)
    code, output = run(job)
    assert code == 0, output
    return job


def test_two_ranks_train_what_one_process_does(pair, undisturbed):
    ours, theirs = (read_history(job.work_dir / "metrics.jsonl") for job in (pair, undisturbed))
    for iteration, line in theirs.train.items():
        assert ours.train[iteration]["loss"] == pytest.approx(line["loss"], rel=1e-4)
    for iteration, line in theirs.evaluations.items():
        assert ours.evaluations[iteration]["mIoU"] == pytest.approx(line["mIoU"], abs=0.5)
    assert json.loads(pair.out.read_text())["batch"]["batch_per_rank"] == 8
    identities = {json.loads(job.out.read_text())["identity"] for job in (pair, undisturbed)}
    assert len(identities) == 1


def test_signal_to_the_launcher_stops_all_ranks_in_order(make_job, pair, gated):
    job = make_job(gpus=2, config=gated)
    with started_and_held(job, 2) as process:
        process.send_signal(signal.SIGTERM)
        code, output = finish(process)
    assert code == 75, output
    assert "stopped cleanly" in output
    stopped_at = trained(job)
    assert (job.work_dir / "checkpoints" / f"iter_{stopped_at}.pth").is_file()
    code, output = run(job)
    assert code == 0, output
    assert same(weights(job), weights(pair))
    events = read_history(job.work_dir / "metrics.jsonl").events
    resumed = next(event for event in events if event["event"] == "resume")
    assert resumed["iteration"] == stopped_at


@pytest.mark.slow
def test_killed_rank_ends_the_run_and_nothing_is_lost(make_job, pair, gated):
    job = make_job(gpus=2, config=gated)
    with started_and_held(job, 4) as process:
        ranks_of(process)[-1].kill()
        code, output = finish(process)
    assert code == 1
    assert "was killed by SIGKILL" in output
    assert "Traceback" not in output
    code, output = run(job)
    assert code == 0, output
    assert same(weights(job), weights(pair))


@pytest.mark.slow
def test_killed_launcher_takes_its_ranks_with_it(make_job, pair, gated):
    job = make_job(gpus=2, config=gated)
    with started_and_held(job, 4) as process:
        ranks = ranks_of(process)
        assert len(ranks) == 2
        process.kill()
        process.wait()
        _, alive = psutil.wait_procs(ranks, timeout=WAIT_SECONDS)
        assert not alive
    code, output = run(job)
    assert code == 0, output
    assert same(weights(job), weights(pair))


@pytest.mark.slow
def test_killed_at_random_moments_while_saving_all_the_time(make_job, undisturbed):
    """Every iteration writes a checkpoint: some kills fall into the writing of one."""
    job = make_job(cfg_options={"default_hooks.checkpoint.interval": 1})
    chance = random.Random(0)
    for _ in range(KILLS):
        before = trained(job)
        process = start(job)
        wait_until(
            "another iteration",
            lambda p=process, n=before: trained(job) > n or p.poll() is not None,
        )
        time.sleep(chance.uniform(0, 0.3))
        process.kill()
        process.wait()
        process.stderr.close()
    code, output = run(job)
    assert code == 0, output
    assert same(weights(job), weights(undisturbed))
    assert (
        json.loads(job.out.read_text())["evaluations"]
        == (json.loads(undisturbed.out.read_text())["evaluations"])
    )


def limited(kilobytes: int) -> tuple[str, ...]:
    """Run a command that can write no larger file, as on a disk with so much room."""
    return ("bash", "-c", f'ulimit -f {kilobytes}; exec "$@"', "bash")


@pytest.mark.slow
def test_full_disk_costs_checkpoints_but_not_the_run(make_job, undisturbed):
    size = (undisturbed.work_dir / "weights.pth").stat().st_size // 1024
    job = make_job("tight")
    code, output = run(job, limited(2 * size))
    assert code == 0, output
    assert "the older checkpoints stay" in output
    assert same(weights(job), weights(undisturbed))


@pytest.mark.slow
def test_full_disk_at_the_end_is_one_line(make_job, undisturbed):
    size = (undisturbed.work_dir / "weights.pth").stat().st_size // 1024
    job = make_job("full")
    code, output = run(job, limited(size // 2))
    assert code == 2
    assert output.splitlines()[-1].startswith("cae-seg: error: ")
    assert "weights.pth: cannot be written" in output
    assert "Traceback" not in output
    assert not job.out.exists()


@pytest.mark.slow
def test_second_writer_waits_and_finds_the_run_finished(make_job, pair, gated):
    job = make_job(gpus=2, config=gated)
    with started_and_held(job, 1) as first:
        second = start(job)
        assert any("waiting for" in line for line in iter(second.stderr.readline, ""))
    code, output = finish(first)
    assert code == 0, output
    code, output = finish(second)
    assert code == 0, output
    assert "finished before" in output
    events = read_history(job.work_dir / "metrics.jsonl").events
    assert [event["event"] for event in events].count("start") == 1
    assert same(weights(job), weights(pair))


def test_mistake_found_by_ranks_is_one_line(make_job, tmp_path):
    wrong = tmp_path / "wrong.pth"
    torch.save({"model": {"encoder.patch_embed.proj.weight": torch.zeros(7, 3, 16, 16)}}, wrong)
    job = make_job(gpus=2, pretrained=wrong)
    code, output = run(job)
    assert code == 2
    assert output.count("cae-seg: error:") == 1
    assert "Traceback" not in output
    assert not job.work_dir.exists()

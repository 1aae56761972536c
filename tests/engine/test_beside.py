"""The engine on mmengine's Runner gives the numbers of the one before it, bit for bit."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cae_seg.engine.job import DONE, TrainJob, encode
from cae_seg.run.paths import read_record

pytestmark = pytest.mark.slow

CODE = """
import importlib, sys
import torch
from cae_seg.engine.job import decode
from cae_seg.engine.ranks import joined
from cae_seg.run.deadline import StopRequest
from cae_seg.run.logs import separate_logs
torch.set_num_threads(1)
with separate_logs(speak=True) as log, joined("cpu") as ranks:
    train = importlib.import_module(sys.argv[1]).train
    sys.exit(train(decode(sys.argv[2]), ranks, StopRequest(), log))
"""
ENGINES = {"old": "cae_seg.engine.old_train", "new": "cae_seg.engine.train"}
MEASURED = ("time", "images_per_second", "data_seconds", "hooks_changed")


def run(engine: str, job: TrainJob, ranks: int, script: Path) -> None:
    script.write_text(CODE)
    start = [sys.executable]
    if ranks > 1:
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        start = [sys.executable, *torchrun]
    done = subprocess.run(
        [*start, str(script), ENGINES[engine], encode(job)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == DONE, done.stderr[-3000:]


def numbers(lines: dict[int, dict]) -> dict[int, dict]:
    return {i: {k: v for k, v in line.items() if k not in MEASURED} for i, line in lines.items()}


@pytest.mark.parametrize(("ranks", "images"), [(1, None), (1, 4), (2, None), (2, 4)])
def test_weights_losses_rates_and_scores_are_equal(make_job, tmp_path, ranks, images):
    jobs = [make_job(engine, images_per_gpu=images, gpus=ranks) for engine in ENGINES]
    for engine, job in zip(ENGINES, jobs, strict=True):
        run(engine, job, ranks, tmp_path / "run.py")
    old, new = (
        torch.load(job.work_dir / "weights.pth", weights_only=True)["state_dict"] for job in jobs
    )
    assert old.keys() == new.keys()
    assert all(torch.equal(old[name], new[name]) for name in old)
    old, new = (read_record(job.work_dir / "record.jsonl") for job in jobs)
    assert numbers(old.train) == numbers(new.train)
    assert numbers(old.evaluations) == numbers(new.evaluations)

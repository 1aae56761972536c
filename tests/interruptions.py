"""Stop runs at chosen moments, in this process or in others, and compare what they leave."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import torch
from interrupted_runs import Run
from waiting import WAIT_SECONDS, wait_until

from cae_seg.engine.job import TrainJob
from cae_seg.run.deadline import StopSignal
from cae_seg.run.paths import read_history


class StopAfter(StopSignal):
    """Asks to stop once it has been looked at so many times."""

    def __init__(self, looks: int) -> None:
        self._left = looks

    @property
    def name(self) -> str | None:
        self._left -= 1
        return "SIGTERM" if self._left < 0 else None


def weights(job: TrainJob) -> dict[str, torch.Tensor]:
    """Return the final weights of a run."""
    return torch.load(job.work_dir / "weights.pth", weights_only=True)["state_dict"]


def losses(job: TrainJob) -> list[float]:
    """Return the loss of each iteration."""
    return [line["loss"] for line in read_history(job.work_dir / "metrics.jsonl").train.values()]


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Tell whether two state dicts are equal bit by bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def command(job: TrainJob) -> list[str]:
    """Return the command line of a job."""
    options = [f"{key}={value}" for key, value in job.cfg_options.items()]
    arguments = [
        sys.executable,
        "-m",
        "cae_seg.cli",
        "train",
        job.config,
        "--device",
        "cpu",
        "--work-dir",
        job.work_dir,
        "--out",
        job.out,
        "--data",
        job.data,
    ]
    if job.gpus:
        arguments += ["--gpus", job.gpus]
    if job.pretrained:
        arguments += ["--pretrained", job.pretrained]
    arguments += ["--iterations", job.iterations]
    if job.batch_size:
        arguments += ["--batch-size", job.batch_size]
    if job.deterministic:
        arguments += ["--deterministic"]
    if options:
        arguments += ["--cfg-options", *options]
    return [str(argument) for argument in arguments]


def start(job: TrainJob, prefix: tuple[str, ...] = ()) -> subprocess.Popen:
    """Start a job in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(job.config.parent)}
    return subprocess.Popen(
        [*prefix, *command(job)], env=environment, text=True, stderr=subprocess.PIPE
    )


def finish(process: subprocess.Popen) -> tuple[int, str]:
    """Wait for a process; return its exit status and what it printed."""
    _, output = process.communicate(timeout=WAIT_SECONDS)
    return process.returncode, output


def run(job: TrainJob, prefix: tuple[str, ...] = ()) -> tuple[int, str]:
    """Run a job in a process of its own."""
    return finish(start(job, prefix))


@contextmanager
def started_and_held(job: TrainJob, iteration: int) -> Iterator[subprocess.Popen]:
    """Start a run that waits after an iteration; let it train on when the context ends."""
    gate = Run(job.work_dir.parent)
    gate.hold(iteration)
    process = start(job)
    try:
        wait_until(f"iteration {iteration}", lambda: gate.held, during=process)
        yield process
    finally:
        gate.release()


def trained(job: TrainJob) -> int:
    """Return the last iteration in the record."""
    return max(read_history(job.work_dir / "metrics.jsonl").train, default=0)


def ranks_of(process: subprocess.Popen) -> list[psutil.Process]:
    """Return the processes that a launcher has started."""
    return psutil.Process(process.pid).children()

"""From a job to its processes: devices, GPU locks, ranks, exit status.

One process runs right here. Several are started by torchrun's agent with a rendezvous on a free
port; on several SLURM nodes, `srun` starts one such agent a node and all meet at a store that the
first launcher keeps. Ranks die with their launcher, and signals reach them through it.
"""

import contextlib
import logging
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from cae_seg.crash import report_traceback
from cae_seg.engine.job import CRASHED, STOPPED, USER_ERROR, EvaluateJob, Job, JointJob, TrainJob
from cae_seg.errors import UserError
from cae_seg.launch import rank
from cae_seg.launch.gpus import acquire_gpus
from cae_seg.launch.slurm import allocated_nodes, requeue_if_advanced, requeue_job
from cae_seg.machine import Placement, count_gpus, place
from cae_seg.run.deadline import StopSignal, stop_on_signals
from cae_seg.run.failure import recording_failure
from cae_seg.run.work_dir import LOCK_SECONDS, Busy, WorkDir
from cae_seg.scratch import scratch_folder

logger = logging.getLogger(__name__)

ENDPOINT = "CAE_SEG_ENDPOINT"
_SLURM_GPUS = ("SLURM_JOB_GPUS", "SLURM_STEP_GPUS", "SLURM_GPUS_ON_NODE")
_SLURM_JOB = ("SLURM_JOB_ID", "SLURM_CONF", "SLURM_CLUSTER_NAME")
_POLL_SECONDS = 0.2
# Rounds that a thread of GNU OpenMP turns before it sleeps, some microseconds, where it would turn
# 300 000: that costs more than the work where other processes want the cores, and time on virtual
# machines. Eight heads over a frozen backbone, two threads on two cores: 3.5 s an iteration against
# 4.8 s, and beside two busy processes 15 s against 100 s (benchmarks/frozen_sweep.py).
SPINS = 1000


def launch_train(job: TrainJob) -> int:
    """Train until done or stopped cleanly.

    Returns:
        Exit status: 0 done, 75 stopped and resumable, 1 crashed.

    Raises:
        UserError: a mistake of the user's, found here or by a rank.
    """
    if ENDPOINT in os.environ:  # on a node of several; the first launcher records failures
        return _launch(job)
    with recording_failure(job.work_dir):
        if not _is_only_writer(job):
            return STOPPED
        code = _launch(job)
    if code == STOPPED:
        requeue_if_advanced(WorkDir(job.work_dir).metrics_log)
    return code


def launch_together(job: JointJob) -> int:
    """Train several runs until done or stopped cleanly; exit status and errors as `launch_train`.

    A mistake found here is noted in the work dirs of all runs; ranks note one in its own.
    """
    if ENDPOINT in os.environ:
        return _launch(job)
    with contextlib.ExitStack() as notes:
        for run in job.runs:
            notes.enter_context(recording_failure(run.work_dir))
        if not all(_is_only_writer(run) for run in job.runs):
            return STOPPED
        _check(job)
    code = _launch(job)
    if code == STOPPED:
        requeue_if_advanced(WorkDir(job.runs[0].work_dir).metrics_log)
    return code


def _is_only_writer(job: TrainJob) -> bool:
    """Wait for another writer of the work dir; False if the SLURM job went back to the queue."""
    try:
        WorkDir(job.work_dir).await_other_writer(_patience(job))
    except Busy as error:
        # A node that SLURM gave up may still be at work; waiting for it must not use GPUs.
        if not requeue_job():
            raise
        logger.warning("%s; the SLURM job returns to the queue", error)
        return False
    return True


def _patience(job: TrainJob) -> float:
    if job.lock_wait is not None:
        return job.lock_wait
    return LOCK_SECONDS if os.environ.get("SLURM_JOB_ID") else math.inf


def launch_evaluate(job: EvaluateJob) -> int:
    """Evaluate; exit status and errors as of `launch_train`."""
    return _launch(job)


def _launch(job: Job) -> int:
    _check(job)
    if job.nodes > 1 and ENDPOINT not in os.environ:
        return _launch_nodes(job)
    with _devices(job) as placement:
        _prepare_environment(job, placement)
        if placement.ranks == 1 and ENDPOINT not in os.environ:
            return rank.run_in_process(job, placement.kind)
        return _launch_ranks(job, placement)


def _check(job: Job) -> None:
    """Refuse what can be seen to be wrong before any device is asked for."""
    from cae_seg.engine.validate import validate_job

    for each in job.runs if isinstance(job, JointJob) else (job,):
        validate_job(each)


@contextlib.contextmanager
def _devices(job: Job) -> Iterator[Placement]:
    """Choose the devices; outside of SLURM, lock the GPUs and show torch only those."""
    given = any(os.environ.get(name) for name in _SLURM_GPUS)
    present = 0 if job.device == "cpu" else _present_gpus()
    placement = place(job.device, job.gpus, present, slurm=given)
    _refuse_other_device(job, placement)
    if placement.kind == "cpu" or os.environ.get("SLURM_JOB_ID"):
        yield placement
        return
    allocation = acquire_gpus(placement.ranks, _visible_devices(present))
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(allocation.devices)
    try:
        yield placement
    finally:
        allocation.release()
        del os.environ["CUDA_VISIBLE_DEVICES"]
        if before is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = before


def _refuse_other_device(job: Job, placement: Placement) -> None:
    """Refuse to continue on the CPU what has begun on a GPU, unless that is asked for."""
    if placement.kind == "cuda" or job.device != "auto" or isinstance(job, EvaluateJob):
        return
    for run in job.runs if isinstance(job, JointJob) else (job,):
        before = (WorkDir(run.work_dir).metadata() or {}).get("device") or {}
        if before.get("type") == "cuda":
            raise UserError(
                f"{run.work_dir}: began on {before.get('name')}, but torch sees no GPU here; check "
                "the driver and CUDA_VISIBLE_DEVICES, or continue on the CPU with --device cpu"
            )


def _present_gpus() -> int:
    if count_gpus() == 0:
        return 0
    import torch

    # Not is_available(): it would start CUDA here, after which the choice of devices is fixed.
    return torch.cuda.device_count() if torch.version.cuda else 0


def _visible_devices(present: int) -> Sequence[str]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    named = [name.strip() for name in visible.split(",")] if visible else []
    return named[:present] if named else [str(index) for index in range(present)]


def _prepare_environment(job: Job, placement: Placement) -> None:
    """Set what the libraries read once, when they are loaded."""
    if placement.kind == "cuda" and getattr(job, "deterministic", False):
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if placement.kind == "cpu" and "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPINS))
    if placement.ranks > 1:
        # What is set already is the job's (Snakemake sets its cores); each rank takes its share.
        cores = len(os.sched_getaffinity(0)) if placement.kind == "cpu" else 1
        share = max(1, cores // placement.ranks)
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
            given = os.environ.get(name, "")
            os.environ[name] = str(min(share, int(given)) if given.isdigit() else share)


def _launch_ranks(job: Job, placement: Placement) -> int:
    """Start the ranks of this node through torchrun's agent and wait for them."""
    with scratch_folder() as folder:
        os.environ.update(
            {
                rank.JOB: _encoded(job),
                rank.DEVICE: placement.kind,
                rank.OUTCOME_DIR: str(folder),
                rank.PARENT: str(os.getpid()),
            }
        )
        stop = StopSignal()
        with stop_on_signals(stop):
            exits = _run_agent(job, placement, stop, folder / "torchrun")
        return _verdict(rank.read_outcomes(folder), exits, stop, placement)


def _encoded(job: Job) -> str:
    from cae_seg.engine.job import encode

    return encode(job)


def _run_agent(job: Job, placement: Placement, stop: StopSignal, log_dir: Path) -> dict[int, int]:
    """Run torchrun's agent in a second thread; return the exit codes of failed ranks.

    In the main thread the agent would take the signals for itself, kill the ranks after 30
    seconds, and so cut a checkpoint short.
    """
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)
    exits: dict[int, int] = {}
    crash: list[BaseException] = []

    def agent() -> None:
        try:
            _elastic(job, placement, log_dir)
        except ChildFailedError as error:
            exits.update({rank: failure.exitcode for rank, failure in error.failures.items()})
        except Exception as error:
            crash.append(error)

    thread = threading.Thread(target=agent, name="torchrun", daemon=True)
    thread.start()
    _forward_signals(thread, stop)
    if crash and not stop.name:
        raise crash[0]
    return exits


def _elastic(job: Job, placement: Placement, log_dir: Path) -> None:
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    endpoint = os.environ.get(ENDPOINT)
    config = LaunchConfig(
        min_nodes=job.nodes,
        max_nodes=job.nodes,
        nproc_per_node=placement.ranks,
        run_id=os.environ.get("SLURM_JOB_ID", "local") if endpoint else f"local-{os.getpid()}",
        rdzv_backend="c10d",
        rdzv_endpoint=endpoint or "localhost:0",
        rdzv_configs={"timeout": 900, **({"is_host": False} if endpoint else {})},
        max_restarts=0,
        local_addr=None if endpoint else "localhost",
        logs_specs=DefaultLogsSpecs(str(log_dir)),
    )
    elastic_launch(config, sys.executable)("-m", "cae_seg.launch.rank")


def _forward_signals(thread: threading.Thread, stop: StopSignal) -> None:
    """Wait for the agent, handing a request to stop on to ranks that are there or still to come."""
    import psutil

    signalled: set[int] = set()
    while thread.is_alive():
        thread.join(_POLL_SECONDS)
        if stop.name:
            number = signal.Signals[stop.name]
            for child in psutil.Process().children():
                if child.pid not in signalled:
                    signalled.add(child.pid)
                    with contextlib.suppress(psutil.NoSuchProcess):
                        child.send_signal(number)


def _verdict(
    outcomes: list[dict], exits: dict[int, int], stop: StopSignal, placement: Placement
) -> int:
    """Turn the messages and exit codes of the ranks into one exit status."""
    if outcomes and outcomes[0]["code"] == USER_ERROR:
        raise UserError(outcomes[0]["message"])
    # SIGTERM is how torchrun itself ends the ranks that another one has left behind.
    killed = {rank: -code for rank, code in exits.items() if code < 0 and -code != signal.SIGTERM}
    if stop.name and not any(outcome["code"] == CRASHED for outcome in outcomes[:1]):
        killed = {}  # asked to stop before the ranks could listen
    if killed:
        victim, number = next(iter(killed.items()))
        logger.error(
            "rank %d of %d was killed by %s", victim, placement.ranks, signal.Signals(number).name
        )
        return CRASHED
    if not outcomes:
        if not stop.name:
            logger.error("the ranks ended before they could say why (exit codes %s)", exits)
        return STOPPED if stop.name else CRASHED
    # The first to end is the cause; the others only lost their peer.
    first = outcomes[0]
    if first["code"] == CRASHED:
        report = report_traceback(first["message"])
        logger.error("rank %d of %d crashed: %s", first["rank"], placement.ranks, report)
    return first["code"]


def _launch_nodes(job: Job) -> int:
    """Start one launcher a node through `srun`; they meet at a store in this process."""
    nodes = allocated_nodes()
    if nodes < job.nodes or not shutil.which("srun"):
        raise UserError(
            f"--nodes {job.nodes}: needs a SLURM job of so many nodes (this one has {nodes})"
        )
    from torch.distributed import TCPStore

    host = os.environ.get("CAE_SEG_HOST", socket.gethostname())
    # The kernel picks the port, and it is ours before it is published.
    store = TCPStore(host, 0, is_master=True, wait_for_workers=False)
    # The other variables tell of the step on one node that we are in, and srun would obey them.
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("SLURM_") or name in _SLURM_JOB
    }
    environment |= {rank.JOB: _encoded(job), ENDPOINT: f"{host}:{store.port}"}
    command = [
        "srun",
        "--overlap",
        f"--nodes={job.nodes}",
        f"--ntasks={job.nodes}",
        "--ntasks-per-node=1",
        "--kill-on-bad-exit=0",
        sys.executable,
        "-m",
        "cae_seg.launch.launcher",
    ]
    if cores := os.environ.get("SLURM_CPUS_PER_TASK"):
        command.insert(2, f"--cpus-per-task={cores}")
    stop = StopSignal()
    with stop_on_signals(stop):
        # In a session of its own: what SLURM sends to our process group would make srun kill the
        # ranks, which SLURM tells by itself, before they have saved.
        srun = subprocess.Popen(command, env=environment, start_new_session=True)
        return _wait_for(srun, stop)


def _wait_for(process: subprocess.Popen, stop: StopSignal) -> int:
    forwarded = False
    while True:
        try:
            code = process.wait(_POLL_SECONDS)
            return STOPPED if code and stop.name else code
        except subprocess.TimeoutExpired:
            if stop.name and not forwarded:
                forwarded = True
                # srun ends its tasks on SIGTERM and SIGINT but hands this one on.
                process.send_signal(signal.SIGUSR1)


def main() -> int:
    """Per-node entry point started by srun; reads the job from the environment."""
    from cae_seg.engine.job import decode

    job = decode(os.environ[rank.JOB])
    try:
        return _launch(job)
    except UserError as error:
        if os.environ.get("SLURM_NODEID", "0") == "0":
            logger.error("cae-seg: error: %s", error)
        return USER_ERROR


if __name__ == "__main__":
    sys.exit(main())

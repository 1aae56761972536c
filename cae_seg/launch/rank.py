"""One process of a run: the whole run where there is one process, a rank where there are several.

`python -m cae_seg.launch.rank` is what torchrun starts; job and device come by environment. How a
rank ended goes to a file of its own, since the launcher has to tell a user's mistake from a crash.
"""

import contextlib
import ctypes
import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path

from cae_seg.engine.job import (
    CRASHED,
    DONE,
    STOPPED,
    USER_ERROR,
    EvaluateJob,
    Job,
    JointJob,
    TrainJob,
    decode,
)
from cae_seg.errors import UserError
from cae_seg.files import full_disk_is_one_line
from cae_seg.loading import loading_libraries
from cae_seg.run.deadline import Interrupted, StopSignal, stop_on_signals
from cae_seg.run.logs import configure_logging

JOB, DEVICE, OUTCOME_DIR, PARENT = (
    "CAE_SEG_JOB",
    "CAE_SEG_DEVICE",
    "CAE_SEG_OUTCOME_DIR",
    "CAE_SEG_PARENT",
)
_PR_SET_PDEATHSIG = 1


def run(job: Job, kind: str, stop: StopSignal) -> int:
    """Do a job in this process, as one of the ranks that the environment names.

    Args:
        job: what to do.
        kind: "cuda" or "cpu".
        stop: set by a signal that asks to stop.

    Returns:
        DONE or STOPPED.
    """
    with contextlib.ExitStack() as ends:
        # Imported only now: the libraries talk while they are loaded.
        with loading_libraries():
            speak = os.environ.get("RANK", "0") == "0"
            log = ends.enter_context(configure_logging(speak=speak))
            import cv2

            from cae_seg.engine.evaluation import evaluate
            from cae_seg.engine.ranks import joined
            from cae_seg.engine.train import train
            from cae_seg.engine.train_together import train_together
            from cae_seg.engine.turns import Turn

        cv2.setNumThreads(0)  # forked loader workers would wait for the parent's threads for ever
        with joined(kind) as device, full_disk_is_one_line(_output_of(job)):
            try:
                if isinstance(job, JointJob):
                    log.discard()  # each run has its own
                    return train_together(job, device, stop)
                if isinstance(job, TrainJob):
                    return train(job, device, stop, log, Turn())
                return evaluate(job, device, stop)
            except Interrupted:
                return STOPPED


def _output_of(job: Job) -> Path | str:
    """Return what to name when there is no room for an unnamed file of a library's."""
    if isinstance(job, EvaluateJob):
        return job.out or job.show_dir or "the disk"
    return job.work_dir if isinstance(job, TrainJob) else job.runs[0].work_dir


def run_in_process(job: Job, kind: str) -> int:
    """Do a job in this process alone, stopping cleanly on a signal."""
    stop = StopSignal()
    with stop_on_signals(stop):
        return run(job, kind, stop)


def main() -> int:
    """Entry point of one rank: run the job of the environment, write its outcome.

    A rank that stopped cleanly exits with 0 like one that is done: torchrun would take
    anything else for a failure and kill the ranks that are still on their way out.
    """
    _die_with_parent()
    stop = StopSignal(patient=True)
    with stop_on_signals(stop):
        try:
            code, message = run(decode(os.environ[JOB]), os.environ[DEVICE], stop), ""
        except UserError as error:
            code, message = USER_ERROR, str(error)
        except Exception:
            code, message = CRASHED, traceback.format_exc()
        _write_outcome(code, message)
    return DONE if code == STOPPED else code


def read_outcomes(folder: Path) -> list[dict]:
    """Return the outcomes of ranks that came so far as to write one, the earliest first."""
    found = [json.loads(path.read_text()) for path in folder.glob("*.json")]
    return sorted(found, key=lambda outcome: outcome["time"])


def _write_outcome(code: int, message: str) -> None:
    rank = int(os.environ["RANK"])
    path = Path(os.environ[OUTCOME_DIR]) / f"{rank}.json"
    aside = path.with_suffix(".part")
    outcome = {"rank": rank, "code": code, "message": message, "time": time.time()}
    aside.write_text(json.dumps(outcome))
    aside.rename(path)


def _die_with_parent() -> None:
    """Have the kernel kill this rank when its launcher is gone, however that ended."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != int(os.environ[PARENT]):  # it went before we asked
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())

"""Case 4: how long a person, or a GPU, waits before anything happens."""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.demo import command, draw_data
from benchmarks.models import TINY
from benchmarks.suite import ROOT, Options, case, run
from benchmarks.turns import alternate, timed
from cae_seg.run.checkpoints import load_state, save_checked

CONFIG = ROOT / "configs_local" / "cae" / "upernet" / f"{TINY}.py"
LATE = 150_000  # iterations done before a late resume


@case("start_up")
def start_up(options: Options) -> list[dict[str, Any]]:
    """Measure the command line, the plan of one row, the first iteration, a late resume."""
    if options.device != "cpu":
        return []
    rounds = options.rounds or 3
    with tempfile.TemporaryDirectory() as folder:
        manifest = draw_data(Path(folder))
        work_dirs = [Path(folder) / str(i) for i in range(rounds)]
        return [
            _help(options),
            _row("dry-run of one row", [_plan() for _ in work_dirs]),
            _row(
                "process start to the end of the first iteration",
                [_wait(work / "fresh", manifest, iterations=1) for work in work_dirs],
            )
            | {"wanted_seconds": "≤ 4.5"},
            _row(
                f"the same, resuming at iteration {LATE}",
                [_late_resume(work / "late", manifest) for work in work_dirs],
            ),
        ]


def _row(what: str, times: list[float]) -> dict[str, Any]:
    most = {"most_seconds": max(times)} if len(times) > 1 else {}
    return {"what": what, "seconds": statistics.median(times)} | most


def _help(options: Options) -> dict[str, Any]:
    """Compare the help with what it would cost to load the libraries for it."""
    eager = [sys.executable, "-c", "import mmseg.apis"]
    ours = [sys.executable, "-m", "cae_seg.cli", "--help"]
    times = alternate(lambda: run(eager), lambda: run(ours), rounds=options.rounds)
    return {"what": "cae-seg --help (stock: import mmseg.apis)", **times}


def _plan() -> float:
    target = "results/demo/tiny_300_lr1e-3/metrics.json"
    words = ["snakemake", "--profile", "demo", "--dry-run", "--nolock", target]
    return timed(lambda: run(words)).clock


def _late_resume(work: Path, manifest: Path) -> float:
    _wait(work, manifest, iterations=LATE + 1, stop_after=2)
    _pretend_late(work)
    return _wait(work, manifest, iterations=LATE + 1, first=LATE + 1)


def _wait(
    work: Path, manifest: Path, *, iterations: int, stop_after: int = 1, first: int = 1
) -> float:
    """Start a training; return the seconds to its next line about an iteration, and end it there.

    Args:
        work: work dir, new or to resume.
        manifest: of the data.
        iterations: length of the run.
        stop_after: iterations to let go by, each saved, before the end.
        first: the iteration that it must begin with.
    """
    record, begin = work / "metrics.jsonl", time.time()
    words = command(f"train {CONFIG}", work_dir=work, data=manifest, device="cpu")
    hooks = [f"default_hooks.{hook}.interval=1" for hook in ("logger", "checkpoint")]
    process = subprocess.Popen(
        [*words, "--iterations", str(iterations), "--cfg-options", *hooks],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while len(lines := _iterations(record, begin)) < stop_after:
            if process.poll() not in (None, 0):
                raise RuntimeError(f"the training in {work} failed")
            time.sleep(0.01)
    finally:
        process.terminate()
        process.wait()
    if lines[0]["iteration"] != first:
        raise RuntimeError(f"the training in {work} began with {lines[0]['iteration']}")
    return lines[0]["time"] - begin


def _iterations(record: Path, since: float) -> list[dict[str, Any]]:
    if not record.exists():
        return []
    lines = [json.loads(line) for line in record.read_text().splitlines() if line.endswith("}")]
    return [line for line in lines if line["kind"] == "train" and line["time"] > since]


def _pretend_late(work: Path) -> None:
    """Make the newest checkpoint of a run that of iteration `LATE`."""
    folder = work / "checkpoints"
    newest = max(folder.glob("iter_*.pth"), key=lambda path: int(path.stem.removeprefix("iter_")))
    state = load_state(newest)
    state["meta"]["iteration"] = LATE
    for path in folder.iterdir():
        path.unlink()
    with (folder / f"iter_{LATE}.pth").open("wb") as stream:
        save_checked(state, stream)

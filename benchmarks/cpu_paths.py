"""Case: what each path that exists only for CPUs gains by itself, in processor time and by clock.

Each measurement has a process of its own, because memory that is kept once is kept for good; the
processes take turns. Everything that is not only for CPUs is on in all of them.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.models import BASE, TINY, build_optimizer, build_ours, load_config
from benchmarks.suite import Options, case
from benchmarks.training import make_batch, step_of
from cae_seg.models.accelerate import CPU_PATHS

IMAGE = (512, 683)
IMAGES = 2  # of a training step
WORKS = {
    "evaluation": f"evaluation of one image of {IMAGE[0]} × {IMAGE[1]}",
    "step": f"training step of {IMAGES} images",
}


@case("cpu_paths")
def cpu_paths(options: Options) -> list[dict[str, Any]]:
    """Measure an evaluation and a training step with none of the paths, and with each alone."""
    if options.device != "cpu":
        return []
    rounds = options.rounds or (1 if options.quick else 3)
    found: dict[tuple[str, str], list[dict[str, float]]] = {}
    for _ in range(rounds):
        for work in WORKS:
            for path in ("none", *CPU_PATHS):
                measured = _in_own_process(work, path, quick=options.quick)
                found.setdefault((work, path), []).append(measured)
    return [
        {"what": f"{title}, {path}", **_compare(found[work, "none"], found[work, path])}
        for work, title in WORKS.items()
        for path in CPU_PATHS
    ]


def _compare(without: list[dict], with_path: list[dict]) -> dict[str, Any]:
    """Return medians without and with a path, and what it divides the time by."""
    row: dict[str, Any] = {}
    for unit in ("processor_seconds", "seconds"):
        sides = {"without": without, "with": with_path}
        medians = {
            side: statistics.median(values[unit] for values in measured)
            for side, measured in sides.items()
        }
        row |= {f"{unit}_{side}": value for side, value in medians.items()}
        row[f"{unit}_ratio"] = medians["without"] / medians["with"]
        row |= {
            f"{unit}_{side}_all": [round(values[unit], 3) for values in measured]
            for side, measured in sides.items()
        }
    return row


def _in_own_process(work: str, path: str, *, quick: bool) -> dict[str, float]:
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.cpu_paths", work, path]
    done = subprocess.run(
        [*command, "quick"] if quick else command,
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[1],
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def _measure(work: str, path: str, *, quick: bool) -> dict[str, float]:
    """Do the work twice; return what the second time took."""
    run = _prepared(work, path, quick=quick)
    run()
    processor, clock = time.process_time(), time.perf_counter()
    run()
    return {
        "processor_seconds": time.process_time() - processor,
        "seconds": time.perf_counter() - clock,
    }


def _prepared(work: str, path: str, *, quick: bool) -> Callable[[], Any]:
    config = load_config(TINY if quick else BASE)
    config.acceleration = {name: name == path for name in CPU_PATHS}
    model = build_ours(config, "cpu")
    if work == "step":
        optimizer = build_optimizer(config, model, "cpu", stock=False)
        return step_of(model.train(), optimizer, make_batch(config, IMAGES, "cpu"))
    size = tuple(side // 8 for side in IMAGE) if quick else IMAGE
    image = torch.randn(3, *size, generator=torch.Generator().manual_seed(0))
    model.eval()
    return lambda: model.predict_labels([image], [size])


if __name__ == "__main__":
    print(json.dumps(_measure(*sys.argv[1:3], quick="quick" in sys.argv[3:])))

"""Case: eight learning rates over one frozen backbone in one job, against one of them alone."""

import itertools
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from benchmarks.suite import Options, case
from cae_seg.run.paths import read_history

RATES = ("1e-4", "2e-4", "5e-4", "1e-3", "2e-3", "5e-3", "1e-2", "2e-2")
MODELS = {"ViT-B/16": "vit_base_patch16_224", "ViT-tiny/16": "vit_tiny_patch16_224"}
IMAGES = 2
IMAGES_OF_DEMO = ("training=64", "validation=24")


class Iteration(NamedTuple):
    """What an iteration takes."""

    processor_seconds: float
    seconds: float


@case("frozen_sweep")
def frozen_sweep(options: Options) -> list[dict[str, Any]]:
    """Measure an iteration of one run and of eight together, 512 × 512, linear head."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = "ViT-tiny/16" if options.quick else "ViT-B/16"
        return [_compare(folder, _prepare(folder), model, options)]


def _compare(folder: Path, data: Path, model: str, options: Options) -> dict[str, Any]:
    rounds = options.rounds or (1 if options.quick else 3)
    sides: dict[str, list[Iteration]] = {"one": [], "eight": []}
    for number in range(rounds):
        for side, rates in (("one", RATES[:1]), ("eight", RATES)):
            work = folder / f"{side}{number}"
            sides[side] += _iterations(work, data, model, rates, options)
    return compare(f"an iteration of {IMAGES} images, {model} frozen, linear head", **sides)


def compare(what: str, one: list[Iteration], eight: list[Iteration]) -> dict[str, Any]:
    """Return the medians of iterations of one run and of eight, and their ratios.

    Processor seconds are the ones to go by where other processes take turns with ours.
    """
    row: dict[str, Any] = {"what": what}
    for unit in Iteration._fields:
        sides = {"one": one, "eight": eight}
        times = {side: [getattr(i, unit) for i in all_] for side, all_ in sides.items()}
        medians = {side: statistics.median(values) for side, values in times.items()}
        row |= {f"{unit}_of_{side}": value for side, value in medians.items()}
        row[f"{unit}_eight_times_one"] = medians["eight"] / medians["one"]
        row |= {f"{unit}_{side}_all": [round(v, 3) for v in all_] for side, all_ in times.items()}
    return row


def _iterations(
    folder: Path, data: Path, model: str, rates: tuple[str, ...], options: Options
) -> list[Iteration]:
    """Measure iterations, after the first, of runs that train together."""
    words: list[str] = []
    for rate in rates:
        words += ["--next"] if words else []
        words += [
            *("--work-dir", str(folder / rate), "--data", str(data), "--learning-rate", rate),
            *("--iterations", str(3 if options.quick else 5), "--batch-size", str(IMAGES)),
            *("--device", options.device, "--options", f"model.timm={MODELS[model]}"),
            *("model.pretrained=None", "default_hooks.logger.interval=1"),
            "train_cfg.val_begin=1000000",
            *("--", "linear_timm_512_slide_40k_ade20k"),
        ]
    log = folder.with_suffix(".log")
    with log.open("w") as output:
        training = subprocess.Popen(["cae-seg", "train", *words], stdout=output, stderr=output)
    moments = list(_watch(training, folder / rates[0] / "metrics.jsonl"))
    if training.wait():
        raise RuntimeError(log.read_text())
    return [
        Iteration(*(end - begin for begin, end in zip(*pair, strict=True)))
        for pair in itertools.pairwise(moments)
    ]


def _watch(training: subprocess.Popen, metrics: Path) -> Iterator[Iteration]:
    """Yield the times that training has taken whenever an iteration is over."""
    process, seen = psutil.Process(training.pid), 0
    while training.poll() is None:
        time.sleep(0.05)
        done = len(read_history(metrics).train) if metrics.exists() else 0
        if done > seen:
            seen = done
            used = process.cpu_times()
            yield Iteration(used.user + used.system, time.monotonic())


def _prepare(folder: Path) -> Path:
    """Draw the demo's images; return their manifest."""
    archive, manifest = folder / "ADEChallengeData2016.zip", folder / "data" / "manifest.json"
    _run("prepare", "demo", f"--archive={archive}", f"--checkpoints={folder / 'checkpoints'}")
    _run(
        *("prepare", "data", f"--source={archive}", f"--root={manifest.parent}"),
        *(f"--manifest={manifest}", "--expected", *IMAGES_OF_DEMO),
    )
    return manifest


def _run(*words: str) -> None:
    done = subprocess.run(["cae-seg", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)

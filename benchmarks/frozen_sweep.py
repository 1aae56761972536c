"""Case: eight learning rates over one frozen backbone in one job, against one of them alone."""

import itertools
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from benchmarks.demo import draw_data
from benchmarks.suite import Options, case
from benchmarks.turns import Seconds, compared, in_turns, median
from cae_seg.run.paths import read_history

RATES = ("1e-4", "2e-4", "5e-4", "1e-3", "2e-3", "5e-3", "1e-2", "2e-2")
MODELS = {"ViT-B/16": "vit_base_patch16_224", "ViT-tiny/16": "vit_tiny_patch16_224"}
IMAGES = 2


@case("frozen_sweep")
def frozen_sweep(options: Options) -> list[dict[str, Any]]:
    """Measure an iteration of one run and of eight together, 512 × 512, linear head."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = "ViT-tiny/16" if options.quick else "ViT-B/16"
        return [_compare(folder, draw_data(folder), model, options)]


def _compare(folder: Path, data: Path, model: str, options: Options) -> dict[str, Any]:
    number = itertools.count()

    def iteration(rates: tuple[str, ...]) -> Seconds:
        work = folder / str(next(number))
        times = _iterations(work, data, model, rates, options)
        return Seconds(*(median(times, by) for by in Seconds._fields))

    sides = {"eight": lambda: iteration(RATES), "one": lambda: iteration(RATES[:1])}
    found = in_turns(sides, options.rounds)
    what = f"an iteration of {IMAGES} images, {model} frozen, linear head"
    return {"what": what, **compared(found, "eight", "one")}


def _iterations(
    folder: Path, data: Path, model: str, rates: tuple[str, ...], options: Options
) -> list[Seconds]:
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
        Seconds(*(end - begin for begin, end in zip(*pair, strict=True)))
        for pair in itertools.pairwise(moments)
    ]


def _watch(training: subprocess.Popen, metrics: Path) -> Iterator[Seconds]:
    """Yield the times that training has taken whenever an iteration is over."""
    process, seen = psutil.Process(training.pid), 0
    while training.poll() is None:
        time.sleep(0.05)
        done = len(read_history(metrics).train) if metrics.exists() else 0
        if done > seen:
            seen = done
            used = process.cpu_times()
            yield Seconds(time.monotonic(), used.user + used.system)

"""Case: eight learning rates over one frozen backbone in one job, against one of them alone."""

import itertools
import statistics
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.suite import Options, case
from cae_seg.run.paths import read_history

RATES = ("1e-4", "2e-4", "5e-4", "1e-3", "2e-3", "5e-3", "1e-2", "2e-2")
MODELS = {"ViT-B/16": "vit_base_patch16_224", "ViT-tiny/16": "vit_tiny_patch16_224"}
IMAGES = 2
IMAGES_OF_DEMO = ("training=64", "validation=24")


@case("frozen_sweep")
def frozen_sweep(options: Options) -> list[dict[str, Any]]:
    """Measure an iteration of one run and of eight together, 512 × 512, linear head."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = "ViT-tiny/16" if options.quick else "ViT-B/16"
        return [_compare(folder, _prepare(folder), model, options)]


def _compare(folder: Path, data: Path, model: str, options: Options) -> dict[str, Any]:
    rounds = options.rounds or (1 if options.quick else 3)
    alone, together = [], []
    for number in range(rounds):
        alone.append(_seconds(folder / f"alone{number}", data, model, RATES[:1], options))
        together.append(_seconds(folder / f"together{number}", data, model, RATES, options))
    one, all_ = statistics.median(alone), statistics.median(together)
    return {
        "what": f"an iteration of {IMAGES} images, {model} frozen, linear head",
        "seconds_of_one_run": one,
        "seconds_of_eight_runs": all_,
        "eight_runs_cost_times_one": all_ / one,
        "one_all": [round(value, 3) for value in alone],
        "eight_all": [round(value, 3) for value in together],
    }


def _seconds(
    folder: Path, data: Path, model: str, rates: tuple[str, ...], options: Options
) -> float:
    """Return the median seconds of an iteration, after the first, of runs that train together."""
    iterations = 3 if options.quick else 8
    words: list[str] = []
    for rate in rates:
        words += ["--next"] if words else []
        words += [
            *("--work-dir", str(folder / rate), "--data", str(data), "--learning-rate", rate),
            *("--iterations", str(iterations), "--batch-size", str(IMAGES)),
            *("--device", options.device, "--options", f"model.timm={MODELS[model]}"),
            *("model.pretrained=None", "default_hooks.logger.interval=1"),
            "train_cfg.val_begin=1000000",
            *("--", "linear_timm_512_slide_40k_ade20k"),
        ]
    _run("train", *words)
    history = read_history(folder / rates[0] / "metrics.jsonl")
    moments = [line["time"] for line in history.train.values()]
    return statistics.median(b - a for a, b in itertools.pairwise(moments))


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

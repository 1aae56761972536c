"""Case: what each path that exists only for CPUs gains by itself, in processor time and by clock.

Each measurement has a process of its own, because memory that is kept once is kept for good; the
processes take turns. Everything that is not only for CPUs is on in all of them, and threads wait
for one another as `cae-seg` lets them.
"""

import functools
import json
import os
import sys
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.models import BASE, TINY, build_optimizer, build_ours, load_config
from benchmarks.suite import Options, case, run
from benchmarks.training import make_batch, step_of
from benchmarks.turns import Seconds, compared, in_turns, timed
from cae_seg.launch.launcher import SPINS
from cae_seg.models.accelerate import CPU_PATHS
from cae_seg.models.ops.loss import upsampled_cross_entropy

IMAGE = (512, 683)
IMAGES = 2  # of a training step
CLASSES = 150
REPEATS = 20  # of the loss, which takes a tenth of a second
WORKS = {
    "evaluation": f"evaluation of one image of {IMAGE[0]} × {IMAGE[1]}",
    "step": f"training step of {IMAGES} images",
    "loss": f"loss of {IMAGES} images from maps of 1/16 and its gradient, {REPEATS} times",
}
# Where each takes part. The loss is too small a part of a step of ViT-B to show there.
TAKES_PART = {
    "winograd": ("evaluation", "step"),
    "progressive_loss": ("loss",),
    "kept_memory": ("evaluation", "step"),
}


@case("cpu_paths")
def cpu_paths(options: Options) -> list[dict[str, Any]]:
    """Measure work with none of the paths, and with each alone that takes part in it."""
    if options.device != "cpu":
        return []
    rows = []
    for work, title in WORKS.items():
        paths = [path for path in CPU_PATHS if work in TAKES_PART[path]]
        sides = {
            path: functools.partial(_in_own_process, work, path, quick=options.quick)
            for path in ("none", *paths)
        }
        found = in_turns(sides, options.rounds)
        rows += [{"what": f"{title}, {path}", **compared(found, "none", path)} for path in paths]
    return rows


def _in_own_process(work: str, path: str, *, quick: bool) -> Seconds:
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.cpu_paths", work, path]
    environment = {**os.environ, "GOMP_SPINCOUNT": str(SPINS)}
    printed = run([*command, "quick"] if quick else command, env=environment)
    return Seconds(*json.loads(printed.splitlines()[-1]))


def _measure(work: str, path: str, *, quick: bool) -> Seconds:
    """Do the work twice; return what the second time took."""
    run = _prepared(work, path, quick=quick)
    run()
    return timed(run)


def _prepared(work: str, path: str, *, quick: bool) -> Callable[[], Any]:
    if work == "loss":
        return _loss(progressive=path == "progressive_loss", side=64 if quick else 512)
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


def _loss(*, progressive: bool, side: int) -> Callable[[], Any]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(IMAGES, CLASSES, side // 16, side // 16, generator=generator)
    labels = torch.randint(0, CLASSES, (IMAGES, side, side), generator=generator)
    logits.requires_grad_()
    settings = {"ignore_index": 255, "align_corners": False, "tiled": True, "weight": 1.0}

    def work() -> None:
        for _ in range(REPEATS):
            loss = upsampled_cross_entropy(logits, labels, progressive=progressive, **settings).loss
            loss.backward()

    return work


if __name__ == "__main__":
    print(json.dumps(_measure(*sys.argv[1:3], quick="quick" in sys.argv[3:])))

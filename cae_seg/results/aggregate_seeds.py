"""The metrics of all seeds of one combination → one file."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cae_seg.errors import UserError
from cae_seg.files import atomic_write_json
from cae_seg.run.schemas import Metrics, read_checked

SCORES = ("mIoU", "mAcc", "aAcc")
LARGE = ("per_class", "confusion")  # left in each seed's own file


def aggregate_seeds(paths: Sequence[Path], out: Path) -> dict[str, Any]:
    """Join the seeds' `metrics.json` into mean, sample standard deviation and the seeds' own.

    Raises:
        UserError: a file is missing or has another shape, a seed is there twice, or the files are
            not of one experiment.
    """
    seeds = [read_checked(path, Metrics, "evaluate again") for path in paths]
    names = {seed.get("experiment") for seed in seeds}
    if len(names) != 1:
        raise UserError(f"{out}: the metrics of {len(names)} experiments cannot be joined in one")
    if len({seed["seed"] for seed in seeds}) < len(seeds):
        raise UserError(f"{out}: two of the metrics are of one seed; name each seed once")
    scores = [seed["mIoU"] for seed in seeds]
    summary = {
        "schema": 1,
        "experiment": names.pop(),
        "n": len(seeds),
        **{name: statistics.fmean(seed[name] for seed in seeds) for name in SCORES},
        "mIoU_std": statistics.stdev(scores) if len(scores) > 1 else None,
        "seeds": [{k: v for k, v in seed.items() if k not in LARGE} for seed in seeds],
    }
    atomic_write_json(out, summary)
    return summary

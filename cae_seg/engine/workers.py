"""Loader processes: how many, and the settings that depend on it."""

import os
from typing import Any

from cae_seg.engine.ranks import Ranks


def configure_workers(loader: Any, asked: int | None, ranks: Ranks) -> Any:
    """Set the number of loader processes in the config of a loader, in place.

    Args:
        loader: config of a loader.
        asked: loader processes per rank; None to follow config and machine.
        ranks: of the run.
    """
    workers = default_workers(loader.get("num_workers", 0), asked, ranks)
    loader["num_workers"] = workers
    loader["pin_memory"] = ranks.device.type == "cuda"
    if workers == 0:
        loader["persistent_workers"] = False
        loader.pop("prefetch_factor", None)
    return loader


def default_workers(configured: int, asked: int | None, ranks: Ranks) -> int:
    """Return the loader processes of a rank: as asked, or as the config says if there are cores."""
    if asked is not None:
        return asked
    cores = len(os.sched_getaffinity(0)) // ranks.world
    # On the CPU the model itself keeps all cores busy.
    return min(configured, max(cores, 1)) if ranks.device.type == "cuda" else 0

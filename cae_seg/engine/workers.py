"""Loader processes: how many, and the settings that depend on it."""

import os
from typing import Any

import torch
from mmengine.dist import get_world_size

import cae_seg.data.handover  # noqa: F401  (registers `whole_batch`)


def configure_workers(loader: Any, asked: int | None, device: torch.device) -> Any:
    """Set how many processes load, and how batches leave them, in the config of a loader, in place.

    Args:
        loader: config of a loader.
        asked: loader processes per rank; None to follow config and machine.
        device: where the model computes.
    """
    workers = default_workers(loader.get("num_workers", 0), asked, device)
    loader["num_workers"] = workers
    loader["pin_memory"] = device.type == "cuda"
    loader.setdefault("collate_fn", {"type": "whole_batch"})
    loader["persistent_workers"] = workers > 0  # kept from one evaluation to the next
    if workers == 0:
        loader.pop("prefetch_factor", None)
    return loader


def default_workers(configured: int, asked: int | None, device: torch.device) -> int:
    """Return the loader processes of a rank: as asked, or as the config says if there are cores."""
    if asked is not None:
        return asked
    cores = len(os.sched_getaffinity(0)) // get_world_size()
    # On the CPU the model itself keeps all cores busy.
    return min(configured, max(cores, 1)) if device.type == "cuda" else 0

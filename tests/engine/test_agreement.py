"""Ranks agree on what any of them wants without waiting for each other."""

import json
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist
import torch.multiprocessing as mp
from waiting import wait_until

from cae_seg.engine.ranks import Agreement


def test_a_rank_alone_hears_itself_at_once():
    assert Agreement().reach([0, 1], now=False) == [0, 1]


def _rank(rank: int, folder: str) -> None:
    passed = Path(folder) / "passed"
    store = f"file://{folder}/store"
    timeout = timedelta(minutes=1)
    dist.init_process_group("gloo", init_method=store, timeout=timeout, rank=rank, world_size=2)
    agreement = Agreement()
    if rank == 1:  # the first one leaves a point that this one has yet to come to
        wait_until("the first rank passes", passed.exists)
    heard = [agreement.reach([0, rank], now=False)]
    passed.touch()
    heard.append(agreement.reach([1, 0], now=False))
    heard.append(agreement.reach([1 - rank, 0], now=False))
    heard.append(agreement.reach([0, 0], now=False))
    heard.append(agreement.reach([rank, 0], now=True))
    dist.destroy_process_group()
    (Path(folder) / f"{rank}.json").write_text(json.dumps(heard))


def test_ranks_hear_at_the_next_point_what_any_of_them_wanted_or_wait_if_told_to(tmp_path: Path):
    mp.start_processes(_rank, args=(str(tmp_path),), nprocs=2, start_method="spawn")
    # What is wanted where another wish is granted, as [1, 0] at the second point, is asked again.
    expected = [[0, 0], [0, 1], [0, 0], [1, 0], [1, 0]]
    for rank in range(2):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == expected

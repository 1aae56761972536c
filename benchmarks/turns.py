"""Sides that are measured in turns, until it is known what one takes of the other's time."""

import gc
import math
import resource
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from scipy import stats

from benchmarks.memory import manage_memory

ENOUGH = 0.10  # a ratio whose spread is below is known
LEAST, MOST = 3, 8  # rounds before that is asked, and rounds after which it is told as it is


class Seconds(NamedTuple):
    """What a piece of work takes; `processor` that of all threads and of children that ended."""

    clock: float
    processor: float


class Ratio(NamedTuple):
    """How many times as long one side takes as another.

    Args:
        value: geometric mean of the ratios of the rounds.
        spread: width of its 95 % interval (Student's t on the logarithms), as a share of it; None
            after one round.
    """

    value: float
    spread: float | None


Found = dict[str, list[Seconds]]


def in_turns(
    sides: dict[str, Callable[[], Seconds]], rounds: int | None = None, by: str = "clock"
) -> Found:
    """Measure sides in turns; return what each took, round by round.

    Args:
        sides: their names and measurements.
        rounds: how many; None for as many as it takes, 3 to 8, until the ratio of the first side
            to every other one has a spread below 10 %.
        by: "clock" or "processor", the ratio that this goes by.
    """
    found: Found = {name: [] for name in sides}
    while not _enough(found, rounds, by):
        for name, measure in sides.items():
            found[name].append(measure())
    return found


def _enough(found: Found, rounds: int | None, by: str) -> bool:
    first, *others = found
    done = len(found[first])
    if rounds is not None:
        return done >= rounds
    if done < LEAST:
        return False
    return done >= MOST or all(ratio(found, first, name, by).spread < ENOUGH for name in others)


def ratio(found: Found, first: str, second: str, by: str = "clock") -> Ratio:
    """Return how many times as long the first side took as the second."""
    pairs = zip(found[first], found[second], strict=True)
    logarithms = [math.log(getattr(a, by) / getattr(b, by)) for a, b in pairs]
    rounds, value = len(logarithms), math.exp(statistics.mean(logarithms))
    if rounds < 2:
        return Ratio(value, None)
    half = stats.t.ppf(0.975, rounds - 1) * statistics.stdev(logarithms) / math.sqrt(rounds)
    return Ratio(value, 2 * math.sinh(half))


def compared(found: Found, first: str, second: str) -> dict[str, Any]:
    """Return the median seconds of two sides and their ratio, by the clock and the processor's."""
    row: dict[str, Any] = {"rounds": len(found[first])}
    for by in Seconds._fields:
        for side in (first, second):
            row[f"{by}_seconds_{side}"] = median(found[side], by)
            row[f"{by}_seconds_{side}_all"] = _rounded(found[side], by)
        found_ratio = ratio(found, first, second, by)
        row |= {f"{by}_ratio": found_ratio.value, f"{by}_spread": found_ratio.spread}
    return row


def against_stock(found: Found, by: str = "clock") -> dict[str, Any]:
    """Return a row about the sides "stock" and "ours": median seconds, their ratio, its spread."""
    value, spread = ratio(found, "stock", "ours", by)
    row: dict[str, Any] = {"ratio": value, "spread": spread, "rounds": len(found["stock"])}
    for side in ("stock", "ours"):
        row |= {side: median(found[side], by), f"{side}_all": _rounded(found[side], by)}
    if by == "clock":
        row["processor_ratio"] = ratio(found, "stock", "ours", "processor").value
    return row


def median(times: list[Seconds], by: str) -> float:
    """Return the median of some seconds."""
    return statistics.median(getattr(seconds, by) for seconds in times)


def _rounded(times: list[Seconds], by: str) -> list[float]:
    return [float(f"{getattr(seconds, by):.4g}") for seconds in times]


def alternate(
    stock: Callable[[], Any],
    ours: Callable[[], Any],
    *,
    rounds: int | None,
    warmup: int = 1,
    settle: dict[str, Callable[[], Any]] | None = None,
) -> dict[str, Any]:
    """Time two callables in turns; return the row of `against_stock`.

    Args:
        stock: the work, done the stock way.
        ours: the same work, done our way.
        rounds: measurements of each, see `in_turns`.
        warmup: rounds before them that do not count.
        settle: each side manages the process's memory in its own way: glibc's for stock, kept for
            ours. As turning from one to the other costs, each turn begins with this, uncounted.
    """

    def turn(side: str, work: Callable[[], Any]) -> Seconds:
        if settle:
            manage_memory(keep=side == "ours")
            settle[side]()
        return timed(work)

    sides = {"stock": lambda: turn("stock", stock), "ours": lambda: turn("ours", ours)}
    in_turns(sides, warmup)
    return against_stock(in_turns(sides, rounds))


def timed(work: Callable[[], Any]) -> Seconds:
    """Return the seconds that `work` takes, on the device too."""
    gc.collect()
    _synchronize()
    clock, processor = time.perf_counter(), _processor_seconds()
    work()
    _synchronize()
    return Seconds(time.perf_counter() - clock, _processor_seconds() - processor)


def _processor_seconds() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def _synchronize() -> None:
    """Wait for the GPU, if there is one."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()

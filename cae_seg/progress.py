"""Progress for a person watching: a bar on a terminal, occasional plain lines in a log."""

import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sized
from typing import Generic, Self, TextIO, TypeVar

T = TypeVar("T")

LINE_SECONDS = 30.0
LINE_FRACTION = 0.1
QUIET_SECONDS = 5.0


def progress(
    items: Iterable[T] | int,
    desc: str,
    unit: str = "it",
    *,
    total: int | None = None,
    initial: int = 0,
    stream: TextIO | None = None,
) -> "Progress[T]":
    """Watch a loop or a count.

    `for image in progress(images, "verify", "image")`, or
    `with progress(size, "download", "B") as bar: bar.update(len(chunk))`.

    Args:
        items: what to loop over, or the number of steps that `update` will report.
        desc: what is being done, a word or two.
        unit: the name of one step; "B" counts bytes with k, M, G.
        total: number of steps, where `items` has no length.
        initial: steps already done before (of a resumed download or training).
        stream: where to write; standard error unless told.
    """
    if isinstance(items, int):
        return Progress((), desc, unit, total=items, initial=initial, stream=stream)
    if total is None and isinstance(items, Sized):
        total = len(items)
    return Progress(items, desc, unit, total=total, initial=initial, stream=stream)


class Progress(Generic[T]):
    """A bar or a series of lines; use `progress` to make one."""

    def __init__(
        self,
        items: Iterable[T],
        desc: str,
        unit: str,
        *,
        total: int | None,
        initial: int,
        stream: TextIO | None,
    ) -> None:
        self._items = items
        self._stream = stream or sys.stderr
        if self._stream.isatty():
            self._display = _bar(desc, unit, total, initial, self._stream)
        else:
            self._display = _Lines(desc, unit, total, initial, self._stream)

    def __iter__(self) -> Iterator[T]:
        with self:
            for item in self._items:
                yield item
                self.update(1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def update(self, steps: int = 1) -> None:
        """Count `steps` more as done."""
        self._display.update(steps)

    def note(self, text: str) -> None:
        """Show `text` (the latest loss, say) behind the count from now on."""
        self._display.set_postfix_str(text, refresh=False)

    def close(self) -> None:
        """End the display; a second call does nothing."""
        self._display.close()


def _bar(desc: str, unit: str, total: int | None, initial: int, stream: TextIO):
    from tqdm import tqdm

    return tqdm(
        total=total,
        desc=desc,
        unit=unit if unit == "B" else f" {unit}",
        unit_scale=unit == "B",
        initial=initial,
        file=stream,
        dynamic_ncols=True,
    )


class _Lines:
    """The part of tqdm's interface that `Progress` uses, written as plain lines."""

    def __init__(
        self, desc: str, unit: str, total: int | None, initial: int, stream: TextIO
    ) -> None:
        self._desc, self._unit, self._total = desc, unit, total
        self._initial = self._done = self._told = initial
        self._stream = stream
        self._note = ""
        self._start = self._told_at = time.monotonic()
        self._closed = False

    def update(self, steps: int) -> None:
        self._done += steps
        now = time.monotonic()
        waited = now - self._told_at
        grown = self._total and self._done - self._told >= LINE_FRACTION * self._total
        if waited >= LINE_SECONDS or (grown and waited >= QUIET_SECONDS):
            self._tell(now)

    def set_postfix_str(self, text: str, refresh: bool = False) -> None:
        self._note = text

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            if self._done != self._told or self._done == self._initial:
                self._tell(time.monotonic())

    def _tell(self, now: float) -> None:
        self._told, self._told_at = self._done, now
        elapsed = now - self._start
        parts = [f"{self._desc}: {self._count()}", f"{duration(elapsed)} elapsed"]
        steps = self._done - self._initial
        if self._total and steps > 0 and self._done < self._total:
            left = elapsed / steps * (self._total - self._done)
            parts.append(f"{duration(left)} left")
        if self._note:
            parts.append(self._note)
        print(", ".join(parts), file=self._stream, flush=True)

    def _count(self) -> str:
        done, total = self._done, self._total
        if self._unit == "B":
            shown = f"{done / 1e6:.1f} MB"
            return f"{shown} of {total / 1e6:.1f} MB ({100 * done // total} %)" if total else shown
        if not total:
            return f"{done} {self._unit}"
        return f"{done}/{total} {self._unit} ({100 * done // total} %)"


def duration(seconds: float) -> str:
    """Return a time span in words, in hours and minutes or in minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def run_label(name: str | None, seed: int) -> str:
    """Return how console lines name a run."""
    return f"{name} seed {seed}" if name else f"seed {seed}"


def training_note(values: Mapping[str, float | None], miou: tuple[int, float] | None = None) -> str:
    """Return what a line of a training says after the count.

    Args:
        values: what is known of `loss`, `lr`, `images_per_second`, `gpu_memory_mb`.
        miou: iteration and mIoU (percent) of the last evaluation.
    """
    known = {key: value for key, value in values.items() if value is not None}
    parts = []
    if "loss" in known:
        parts.append(f"loss {known['loss']:.3f}")
    if miou is not None:
        parts.append(f"mIoU {miou[1]:.2f} at {miou[0]}")
    if "lr" in known:
        parts.append(f"lr {known['lr']:.2e}")
    if "images_per_second" in known:
        parts.append(f"{known['images_per_second']:.1f} images/s")
    if known.get("gpu_memory_mb"):
        parts.append(f"{known['gpu_memory_mb'] / 1024:.1f} GB")
    return ", ".join(parts)

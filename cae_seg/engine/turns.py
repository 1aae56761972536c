"""Runs that take turns in one process, and what they share: batches, and a frozen backbone.

A run is the same code whether it trains alone or with others. It says where it has come to before
each iteration and each image of an evaluation; the one that is furthest behind continues. So runs
that start from different iterations meet, and from there on ask for the same batches and the same
maps of the backbone, which are made once.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from greenlet import getcurrent, greenlet
from torch import nn
from torch.utils.data import DataLoader

from cae_seg.errors import UserError
from cae_seg.models.backbones.frozen import Frozen

Place = tuple[int, float]
"""Iterations done, and images of the evaluation after them; all images, before an iteration."""
BEFORE_ITERATION = float("inf")


class Turn:
    """A run's place among others; alone, as here, it neither waits nor shares.

    Attributes:
        runs: how many runs take turns.
    """

    runs = 1

    def join(self, model: nn.Module, settings: Any) -> None:
        """Take part, once the model has the weights that it starts with.

        Args:
            model: of the run, without its wrapper.
            settings: what batches depend on besides the iteration; equal ones are made once.

        Raises:
            UserError: the model's backbone is trained.
        """

    def wait(self, iteration: int, image: float = BEFORE_ITERATION) -> None:
        """Wait until no other run is behind this place."""

    def batch(self, kind: str, number: int, load: Callable[[], Any]) -> Any:
        """Return a batch from `load`, which another run may have called.

        Args:
            kind: "train" or "val".
            number: the iteration, or the batch's number in the evaluation.
            load: makes it.
        """
        return load()

    def loader(self, loader: DataLoader, iteration: Callable[[], int]) -> Any:
        """Return a loader of validation images that waits before each of them."""
        return loader


class _Member(Turn):
    """The turn of one of several runs."""

    def __init__(self, together: "_Together", runs: int) -> None:
        self.runs = runs
        self.place: Place = (-1, BEFORE_ITERATION)
        self._together = together
        self._settings: Any = None

    def join(self, model: nn.Module, settings: Any) -> None:
        backbone = getattr(model, "backbone", None)
        if not isinstance(backbone, Frozen):
            raise UserError(
                "only runs over a frozen backbone train together; set model.frozen=True, or train "
                "this run alone"
            )
        self._settings = settings
        self._together.share(backbone)

    def wait(self, iteration: int, image: float = BEFORE_ITERATION) -> None:
        self.place = (iteration, image)
        getcurrent().parent.switch()

    def batch(self, kind: str, number: int, load: Callable[[], Any]) -> Any:
        made = self._together.batch((self._settings, kind, self.place, number), load)
        if not isinstance(made, dict):
            return copy.deepcopy(made)
        # The preprocessor pads labels, and an evaluation adds predictions, in place.
        return {k: v if k == "inputs" else copy.deepcopy(v) for k, v in made.items()}

    def loader(self, loader: DataLoader, iteration: Callable[[], int]) -> Any:
        return _SharedLoader(self, loader, iteration)


class _SharedLoader:
    """The validation images of several runs, loaded by the first one that asks."""

    def __init__(self, turn: Turn, loader: DataLoader, iteration: Callable[[], int]) -> None:
        self._turn, self._loader, self._iteration = turn, loader, iteration

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        batches: list[Iterator[Any]] = []
        loaded = 0

        def load() -> Any:
            """Load a batch; those before it were loaded by a run that is gone."""
            nonlocal loaded
            if not batches:
                batches.append(iter(self._loader))
            while loaded < number:
                next(batches[0])
                loaded += 1
            loaded += 1
            return next(batches[0])

        for number in range(len(self._loader)):
            self._turn.wait(self._iteration(), number)
            yield self._turn.batch("val", number, load)


class _Together:
    """What runs that take turns share."""

    def __init__(self) -> None:
        self._backbones: list[Frozen] = []
        self._key: Any = None
        self._batch: Any = None

    def share(self, backbone: Frozen) -> None:
        """Let a backbone share with the first one that is the same."""
        if not any(backbone.share(other) for other in self._backbones):
            self._backbones.append(backbone)

    def batch(self, key: Any, load: Callable[[], Any]) -> Any:
        """Return the batch of the same key, or load it."""
        if self._key != key:
            self._key, self._batch = None, load()
            self._key = key
        return self._batch

    def forget_maps(self) -> None:
        """Drop the maps of the place that all have left."""
        for backbone in self._backbones:
            if backbone.maps is not None:
                backbone.maps.forget()


def take_turns(runs: Sequence[Callable[[Turn], int]]) -> list[int | UserError]:
    """Do several runs in turns.

    Args:
        runs: each gets its turn, and returns its outcome.

    Returns:
        The outcome of each, or the user's mistake that ended it; the others continue then.

    Raises:
        Exception: anything else that a run raises ends all of them.
    """
    together = _Together()
    members = [_Member(together, len(runs)) for _ in runs]
    tasks = [greenlet(_outcome) for _ in runs]
    outcomes: list[Any] = [None] * len(runs)
    place: Place | None = None
    while waiting := [number for number, task in enumerate(tasks) if not task.dead]:
        number = min(waiting, key=lambda number: members[number].place)
        if members[number].place != place:
            place = members[number].place
            together.forget_maps()
        started = bool(tasks[number])
        arguments = () if started else (runs[number], members[number])
        try:
            outcomes[number] = tasks[number].switch(*arguments)
        except BaseException:
            for task in tasks:
                task.throw()  # leaves work dirs in order; does nothing to those that are over
            raise
    return outcomes


def _outcome(run: Callable[[Turn], int], turn: Turn) -> int | UserError:
    try:
        return run(turn)
    except UserError as error:
        return error

"""The training loop: iterations, micro-batches, and what happens between them.

All randomness of an iteration is a function of (seed, iteration, rank, sample), so that a run that
goes on from a checkpoint does exactly what it would have done undisturbed.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from mmengine.optim import OptimWrapper
from torch import Tensor, nn

from cae_seg.engine.old_runner import BatchSplit
from cae_seg.engine.ranks import Ranks
from cae_seg.models.layers.stochastic import set_randomness
from cae_seg.progress import Progress
from cae_seg.run.checkpoints import Checkpoints
from cae_seg.run.deadline import Budget, StopRequest
from cae_seg.run.metrics_log import RecordWriter

logger = logging.getLogger(__name__)

_TORCH_STREAM = 0x746F7263  # keeps torch's stream apart from the others drawn from the seed


@dataclass(frozen=True)
class Pace:
    """When things happen, in iterations; `save_seconds` in seconds."""

    iterations: int
    save: int
    evaluate: int
    log: int
    save_seconds: float = 1800.0


@dataclass
class Parts:
    """What the loop drives."""

    model: nn.Module  # the segmentor itself
    wrapped: nn.Module  # what is called in training: the segmentor, or DDP around it
    optimiser: OptimWrapper
    schedulers: list
    batches: Iterator[dict]


@dataclass
class Watch:
    """What the loop tells and obeys."""

    record: RecordWriter
    checkpoints: Checkpoints
    budget: Budget
    request: StopRequest
    progress: Progress
    evaluate: Callable[[int], dict[str, float]]
    evaluated: set[int] = field(default_factory=set)  # iterations


class Loop:
    """Train from `done` iterations to the end, or to a stop in good order.

    Args:
        parts: what is trained, and how.
        watch: record, checkpoints, time.
        ranks: this process among others.
        split: how a batch is shared.
        pace: when to save, evaluate and log.
        seed: of the run.
        identity: of the run, kept in its checkpoints.
        done: iterations done before.
    """

    def __init__(
        self,
        parts: Parts,
        watch: Watch,
        *,
        ranks: Ranks,
        split: BatchSplit,
        pace: Pace,
        seed: int,
        identity: str,
        done: int = 0,
    ) -> None:
        self._parts, self._watch = parts, watch
        self._ranks, self._split, self._pace = ranks, split, pace
        self._seed, self._identity = seed, identity
        self._saved = self._started = self.done = done
        self._saved_at = time.monotonic()
        self._meter = _Meter()
        self._note: dict[str, str] = {}

    def run(self) -> bool:
        """Train; return whether the end was reached."""
        parts, passes = self._parts, self._split.accumulation
        parts.optimiser.initialize_count_status(
            parts.wrapped, self.done * passes, self._pace.iterations * passes
        )
        parts.wrapped.train()
        going_on = self._between()
        while going_on and self.done < self._pace.iterations:
            self._iterate()
            going_on = self._between()
        return going_on

    def state(self) -> dict[str, Any]:
        """Return everything that the next iteration depends on, as tensors and plain values."""
        parts = self._parts
        return {
            "meta": {"iteration": self.done, "identity": self._identity, "seed": self._seed},
            "state_dict": parts.model.state_dict(),
            "optimizer": parts.optimiser.state_dict(),
            "param_schedulers": [scheduler.state_dict() for scheduler in parts.schedulers],
        }

    def _iterate(self) -> None:
        """Do one step of the optimiser on this rank's share of a batch."""
        begin = time.monotonic()
        batch = next(self._parts.batches)
        loaded = time.monotonic()
        _seed_torch(self._seed, self.done, self._ranks.rank)
        logged = self._due(self._pace.log, self.done + 1)
        losses = [self._micro(batch, part) for part in range(self._split.accumulation)]
        optimiser = self._parts.optimiser
        self._average()
        norm = gradient_norm(optimiser) if logged else None
        rate = max(group["lr"] for group in optimiser.param_groups)
        optimiser.step()
        optimiser.zero_grad()
        for scheduler in self._parts.schedulers:
            scheduler.step()
        self.done += 1
        self._meter.add(time.monotonic() - begin, loaded - begin)
        self._watch.budget.iterated(time.monotonic() - begin)
        if logged:
            self._log(losses, norm, rate)
        self._watch.progress.update()

    def _micro(self, batch: dict[str, list], part: int) -> dict[str, Tensor]:
        """Add the gradients of one micro-batch; return its losses."""
        parts, split = self._parts, self._split
        first = part * split.micro
        piece = {key: values[first : first + split.micro] for key, values in batch.items()}
        set_randomness(
            parts.model,
            seed=self._seed,
            iteration=self.done,
            samples=split.micro,
            first_sample=self._ranks.rank * split.per_rank + first,
            total=split.total,
        )
        with parts.optimiser.optim_context(parts.wrapped):
            data = parts.model.data_preprocessor(piece, training=True)
            losses = parts.wrapped(**data, mode="loss")
        loss, values = parts.model.parse_losses(losses)
        parts.optimiser.backward(parts.optimiser.scale_loss(loss))
        return {name: value.detach() for name, value in values.items()}

    def _average(self) -> None:
        """Average the gradients over the ranks where DDP has not done so on the way."""
        parts = self._parts
        if self._ranks.world > 1 and parts.wrapped is parts.model:
            self._ranks.average([p.grad for p in parts.model.parameters() if p.grad is not None])

    def _between(self) -> bool:
        """Save, evaluate, or stop, as all ranks agree; return whether to go on."""
        watch, last = self._watch, self.done == self._pace.iterations
        evaluate = (
            self.done > 0
            and (last or self._due(self._pace.evaluate, self.done))
            and self.done not in watch.evaluated
        )
        stop, save, evaluation_waits = self._agree(evaluate)
        unsaved = self.done != self._saved
        if unsaved and (stop or save or evaluate or last):
            self._save()
        if stop and not (last and not evaluate):
            return False
        if evaluate:
            if evaluation_waits and self.done != self._started:
                return False
            self._evaluate()
        return True

    def _agree(self, evaluate: bool) -> tuple[bool, bool, bool]:
        """Return what any rank wants: to stop, to save, to leave the evaluation for later."""
        budget = self._watch.budget
        aged = time.monotonic() - self._saved_at > self._pace.save_seconds
        wishes = self._ranks.largest(
            [
                self._watch.request.reason is not None or budget.exhausted(),
                self._due(self._pace.save, self.done) or aged,
                evaluate and budget.forbids_evaluation(),
            ]
        )
        return tuple(bool(wish) for wish in wishes)

    def _save(self) -> None:
        if self._ranks.first:
            saved = self._watch.checkpoints.save(self.done, self.state())
            if saved is not None:
                self._watch.budget.saved(saved.seconds)
        self._saved, self._saved_at = self.done, time.monotonic()

    def _evaluate(self) -> None:
        begin = time.monotonic()
        scores = self._watch.evaluate(self.done)
        self._watch.budget.evaluated(time.monotonic() - begin)
        self._watch.evaluated.add(self.done)
        self._watch.record.write("eval", iteration=self.done, **scores)
        self._note["mIoU"] = f"{scores['mIoU']:.2f}"
        self._parts.wrapped.train()

    def _log(self, losses: list[dict[str, Tensor]], norm: float | None, rate: float) -> None:
        """Record the means over micro-batches and ranks."""
        names = sorted(losses[0])
        own = [torch.stack([part[name] for part in losses]).mean().item() for name in names]
        means = dict(zip(names, self._ranks.mean(own), strict=True))
        if not math.isfinite(means["loss"]):
            self._warn_of_loss()
        device = self._ranks.device
        memory = torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else None
        self._watch.record.write(
            "train",
            iteration=self.done,
            **means,
            lr=rate,
            grad_norm=norm,
            **self._meter.read(self._split.total),
            gpu_memory_mb=memory,
        )
        self._note["loss"] = f"{means['loss']:.3f}"
        self._watch.progress.note(" ".join(f"{k} {v}" for k, v in sorted(self._note.items())))

    def _warn_of_loss(self) -> None:
        text = "the loss is no number; the run will hardly recover, try a smaller learning rate"
        if self._ranks.first:
            logger.warning("iteration %d: %s", self.done, text)
        self._watch.record.event("warning", iteration=self.done, message=text)

    @staticmethod
    def _due(interval: int, iteration: int) -> bool:
        return iteration % interval == 0


class _Meter:
    """Speed since it was last read."""

    def __init__(self) -> None:
        self._count, self._seconds, self._data_seconds = 0, 0.0, 0.0

    def add(self, seconds: float, data_seconds: float) -> None:
        self._count += 1
        self._seconds += seconds
        self._data_seconds += data_seconds

    def read(self, images: int) -> dict[str, float]:
        """Return the means and begin anew."""
        speed = {
            "images_per_second": images * self._count / self._seconds,
            "data_seconds": self._data_seconds / self._count,
        }
        self.__init__()
        return speed


def restore(state: dict[str, Any], parts: Parts) -> int:
    """Put a state that `Loop.state` returned back; return the iterations done."""
    parts.model.load_state_dict(state["state_dict"])
    parts.optimiser.load_state_dict(state["optimizer"])
    for scheduler, values in zip(parts.schedulers, state["param_schedulers"], strict=True):
        scheduler.load_state_dict(values)
    return state["meta"]["iteration"]


def gradient_norm(optimiser: OptimWrapper) -> float:
    """Return the Euclidean norm of all gradients, the loss scale taken out."""
    gradients = [
        parameter.grad
        for group in optimiser.param_groups
        for parameter in group["params"]
        if parameter.grad is not None
    ]
    norms = torch._foreach_norm([gradient.float() for gradient in gradients])
    scaler = getattr(optimiser, "loss_scaler", None)
    scale = scaler.get_scale() if scaler is not None else 1.0
    return torch.stack(norms).norm().item() / scale


def _seed_torch(seed: int, iteration: int, rank: int) -> None:
    """Seed torch's generators for whatever a module draws from them in this iteration."""
    words = np.random.SeedSequence([_TORCH_STREAM, seed, iteration, rank])
    torch.manual_seed(int(words.generate_state(1, np.uint64)[0] >> 1))

"""What the command and the machine decide about a run, as against its config."""

from dataclasses import dataclass, field
from pathlib import Path

import torch

from cae_seg.engine.batch import BatchSplit
from cae_seg.engine.turns import Turn
from cae_seg.run.checkpoints import Checkpoints, iteration_of
from cae_seg.run.deadline import StopSignal, TimeBudget
from cae_seg.run.metrics_log import MetricsLogger


@dataclass
class Session:
    """What a runner needs beyond its config.

    Args:
        device: where this process computes.
        seed: of the run.
        stop: set by a signal that asks to stop.
        budget: the time that this attempt has.
        workers: loader processes per rank; None to follow the config.
        deterministic: the same bits on CUDA too.
        precision: "fp16", "bf16", "fp32" or "apex".
        evaluation_precision: "fp32", "tf32", "fp16" or "bf16".
        turn: the run's place among those that train together.
    """

    device: torch.device
    seed: int
    stop: StopSignal
    budget: TimeBudget = field(default_factory=lambda: TimeBudget(None))
    workers: int | None = None
    deterministic: bool = False
    precision: str = "fp32"
    evaluation_precision: str = "fp32"
    turn: Turn = field(default_factory=Turn)

    def must_stop(self) -> bool:
        """Tell whether a signal or the deadline asks to leave a long step."""
        return self.stop.name is not None or self.budget.is_over()


@dataclass
class TrainingSession(Session):
    """What a training needs besides that.

    Args:
        split: how a batch is shared.
        metrics: log of the metrics.
        checkpoints: resumable states.
        resume_from: the newest whole state, if there is one.
        identity: of the run, kept in its checkpoints.
        save_interval: iterations between checkpoints.
        log_interval: iterations between lines of the metrics log.
    """

    split: BatchSplit = field(kw_only=True)
    metrics: MetricsLogger = field(kw_only=True)
    checkpoints: Checkpoints = field(kw_only=True)
    resume_from: Path | None = field(kw_only=True)
    identity: str = field(kw_only=True)
    save_interval: int = field(kw_only=True)
    log_interval: int = field(kw_only=True)

    @property
    def iterations_done(self) -> int:
        """Iterations before this attempt."""
        return 0 if self.resume_from is None else iteration_of(self.resume_from)

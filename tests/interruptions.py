"""Stop runs at chosen moments, and compare what they leave."""

import torch

from cae_seg.engine.job import TrainJob
from cae_seg.run.deadline import StopRequest
from cae_seg.run.paths import read_record


class StopAfter(StopRequest):
    """Asks to stop once it has been looked at so many times."""

    def __init__(self, looks: int) -> None:
        self._left = looks

    @property
    def reason(self) -> str | None:
        self._left -= 1
        return "SIGTERM" if self._left < 0 else None


def weights(job: TrainJob) -> dict[str, torch.Tensor]:
    """Return the final weights of a run."""
    return torch.load(job.work_dir / "weights.pth", weights_only=True)["state_dict"]


def losses(job: TrainJob) -> list[float]:
    """Return the loss of each iteration."""
    return [line["loss"] for line in read_record(job.work_dir / "record.jsonl").train.values()]


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Tell whether two state dicts are equal bit by bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)

"""Show a person how far training and evaluation have come."""

from collections.abc import Callable
from typing import Any

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from cae_seg.progress import Progress, progress
from cae_seg.run.logs import SafeStream


@HOOKS.register_module()
class ProgressHook(Hook):
    """A bar, or occasional lines, for training and for each evaluation.

    Args:
        name: of the run.
    """

    priority = "VERY_LOW"
    stateless = True

    def __init__(self, name: str) -> None:
        self._name = name
        self._bars: dict[str, Progress] = {}
        self._note: dict[str, str] = {}

    def before_train(self, runner: Runner) -> None:
        """Open the bar of the training."""
        self._open(runner, f"train {self._name}", "iterations", runner.max_iters, runner.iter)

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: dict[str, Any] | None = None,
    ) -> None:
        """Count an iteration; name its loss where that is logged."""
        if runner.model.wants_norm and outputs:
            self._note["loss"] = f"{float(outputs['loss']):.3f}"
            self._show_note()
        self._bars["iterations"].update()

    def after_train(self, runner: Runner) -> None:
        """Close the bar of the training."""
        self.close()

    def before_val_epoch(self, runner: Runner) -> None:
        """Open the bar of an evaluation."""
        images = len(runner.val_dataloader.dataset)
        self._open(runner, f"evaluate {self._name}", "images", images)

    def after_val_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Count the images of all ranks."""
        self._bars["images"].update(len(outputs) * runner.world_size)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Close the bar of an evaluation; keep its score in sight."""
        self._bars.pop("images").close()
        if metrics and "mIoU" in metrics:
            self._note["mIoU"] = f"{metrics['mIoU']:.2f}"
            self._show_note()

    def before_test_epoch(self, runner: Runner) -> None:
        """Open the bar of a test."""
        images = len(runner.test_dataloader.dataset)
        self._open(runner, f"evaluate {self._name}", "images", images)

    after_test_iter: Callable[..., None] = after_val_iter

    def after_test_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Close the bar of a test."""
        self.close()

    def close(self) -> None:
        """Close what is open."""
        while self._bars:
            self._bars.popitem()[1].close()

    def _open(self, runner: Runner, title: str, unit: str, total: int, done: int = 0) -> None:
        stream = SafeStream(runner.session.ranks.first)
        self._bars[unit] = progress(total, title.strip(), unit, initial=done, stream=stream)

    def _show_note(self) -> None:
        if "iterations" in self._bars:
            text = " ".join(f"{key} {value}" for key, value in sorted(self._note.items()))
            self._bars["iterations"].note(text)

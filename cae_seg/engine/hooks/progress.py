"""Show a person how far training and evaluation have come."""

from collections.abc import Callable
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from cae_seg.progress import Progress, progress, training_note
from cae_seg.run.logs import SafeStream


@HOOKS.register_module()
class ProgressHook(Hook):
    """A bar, or occasional lines, for training and for each evaluation.

    Args:
        label: of the run, as `run_label` returns it.
        miou: iteration and mIoU of the last evaluation before this attempt.
    """

    priority = "VERY_LOW"
    stateless = True

    def __init__(self, label: str, miou: tuple[int, float] | None = None) -> None:
        self._label, self._miou = label, miou
        self._bars: dict[str, Progress] = {}
        self._images_left = 0

    def before_train(self, runner: Runner) -> None:
        """Open the bar of the training."""
        self._open(f"train {self._label}", "iterations", runner.max_iters, runner.iter)

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: dict[str, Any] | None = None,
    ) -> None:
        """Count an iteration; show the values of the metrics log as they are written."""
        if runner.model.wants_norm:
            self._show_note(runner)
        self._bars["iterations"].update()

    def after_train(self, runner: Runner) -> None:
        """Close the bar of the training."""
        self.close()

    def before_val_epoch(self, runner: Runner) -> None:
        """Open the bar of an evaluation."""
        self._open_evaluation(len(runner.val_dataloader.dataset))

    def after_val_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Count the images of all ranks, of which the last may have fewer."""
        images = min(len(outputs) * runner.world_size, self._images_left)
        self._images_left -= images
        self._bars["images"].update(images)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Close the bar of an evaluation; keep its score in sight."""
        self._bars.pop("images").close()
        if metrics and "mIoU" in metrics:
            self._miou = (runner.iter, metrics["mIoU"])
            self._show_note(runner)

    def before_test_epoch(self, runner: Runner) -> None:
        """Open the bar of a test."""
        self._open_evaluation(len(runner.test_dataloader.dataset))

    after_test_iter: Callable[..., None] = after_val_iter

    def after_test_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Close the bar of a test."""
        self.close()

    def close(self) -> None:
        """Close what is open."""
        while self._bars:
            self._bars.popitem()[1].close()

    def _open_evaluation(self, images: int) -> None:
        self._images_left = images
        self._open(f"evaluate {self._label}", "images", images)

    def _open(self, title: str, unit: str, total: int, done: int = 0) -> None:
        stream = SafeStream(is_main_process())
        self._bars[unit] = progress(total, title, unit, initial=done, stream=stream)

    def _show_note(self, runner: Runner) -> None:
        if "iterations" in self._bars:
            values = runner.session.metrics.last.get("train", {})
            self._bars["iterations"].note(training_note(values, self._miou))

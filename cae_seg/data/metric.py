"""The evaluation metric: pixel counts, and the scores that follow from them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from mmengine.dist import all_reduce, get_dist_info
from mmengine.registry import METRICS
from mmseg.evaluation import IoUMetric
from torch import Tensor

from cae_seg.errors import UserError

CLASSES = 150
IGNORE = 255


def confusion(pred: Tensor, label: Tensor, classes: int = CLASSES) -> Tensor:
    """Count pixels by true and predicted class; neither argument is changed.

    Works on whatever device the two maps share, in integers, so counts of images and of ranks may
    be summed in any order.

    Args:
        pred: predicted classes 0 … classes-1, any shape and integer type.
        label: true classes, same shape; values from `classes` upward (255) are ignored.

    Returns:
        (classes, classes) int64: rows are true classes, columns predicted ones.
    """
    return strict_confusion(pred, label, classes)[0]


def areas(counts: Tensor) -> Tensor:
    """Return the pixels of intersection, union, prediction and label per class.

    Args:
        counts: (C, C) as `confusion` returns it, or a sum of such.

    Returns:
        (4, C) int64.
    """
    intersect, pred, label = counts.diagonal(), counts.sum(0), counts.sum(1)
    return torch.stack([intersect, pred + label - intersect, pred, label])


def scores(counts: Tensor) -> dict[str, float | np.ndarray]:
    """Return the scores of a whole evaluation, in percent and unrounded.

    Args:
        counts: (C, C) as `confusion` returns it, summed over all images.

    Returns:
        `mIoU`, `mAcc` (means over the classes that occur), `aAcc` (share of correct pixels) as
        floats; `IoU` and `Acc` as (C,) float64 with NaN for a class that occurs nowhere.
    """
    intersect, union, _, label = areas(counts.cpu()).numpy().astype(np.float64)
    with np.errstate(invalid="ignore"):
        iou, acc = 100 * (intersect / union), 100 * (intersect / label)
        all_acc = 100 * (intersect.sum() / label.sum())
    return {
        "mIoU": _mean(iou),
        "mAcc": _mean(acc),
        "aAcc": float(all_acc),
        "IoU": iou,
        "Acc": acc,
    }


def _mean(values: np.ndarray) -> float:
    present = values[~np.isnan(values)]
    return float(present.mean()) if present.size else float("nan")


@METRICS.register_module()
class ExactIoUMetric(IoUMetric):
    """mmsegmentation's IoU metric from whole-number counts, unrounded, on any number of ranks.

    The stock metric counts pixels in float32, which loses some beyond 2^24, and rounds its scores
    to two decimals.

    Attributes:
        counts: (C, C) int64 confusion matrix of the last evaluation, rows are true classes.
        scores: of the last evaluation, as `cae_seg.data.metric.scores`.
    """

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Count the pixels of a batch; the ground truth must have the predictions' sizes."""
        if self.output_dir is not None:
            format_only, self.format_only = self.format_only, True
            super().process(data_batch, data_samples)
            self.format_only = format_only
        if not self.format_only:
            for sample in data_samples:
                self._count(sample)

    def _count(self, sample: dict) -> None:
        classes = len(self.dataset_meta["classes"])
        pred = sample["pred_sem_seg"]["data"].squeeze()
        label = sample["gt_sem_seg"]["data"].squeeze().to(pred.device)
        counts, outside = strict_confusion(pred, label, classes, self.ignore_index)
        if not self.results:
            self._names, self._total = [], torch.zeros_like(counts)
        # The last image of a rank may be a repeated one, which fills its share up: its counts are
        # kept apart until the size of the data set is known.
        self._total += self._last if self.results else 0
        self._last = counts
        self._names.append(sample.get("img_path", "an image"))
        self.results.append(outside)

    def evaluate(self, size: int) -> dict[str, float]:
        """Return the scores over all ranks, in percent.

        Args:
            size: number of images in the data set, dealt out in turn to the ranks.

        Raises:
            UserError: labels or predictions outside of the data set's classes.
        """
        if self.format_only:
            return {}
        rank, world = get_dist_info()
        classes = len(self.dataset_meta["classes"])
        total = torch.zeros(classes, classes, dtype=torch.int64)
        if self.results:
            last_is_own = (len(self.results) - 1) * world + rank < size
            total = (self._total + self._last if last_is_own else self._total).cpu()
            self._refuse_outside(torch.stack(self.results).tolist(), classes)
        all_reduce(total)
        self.results.clear()
        self.counts = total
        self.scores = scores(total)
        return self._selected()

    def _refuse_outside(self, outside: list[list[int]], classes: int) -> None:
        for name, (labels, predictions) in zip(self._names, outside, strict=True):
            if labels or predictions:
                what = "its annotation" if labels else "its prediction"
                raise UserError(
                    f"{name}: {what} has {labels or predictions} pixels outside of the "
                    f"{classes} classes of the data set; check num_classes of the heads, "
                    "reduce_zero_label and ignore_index"
                )

    def _selected(self) -> dict[str, float]:
        found: dict[str, Any] = {key: self.scores[key] for key in ("aAcc", "mIoU", "mAcc")}
        if others := [metric for metric in self.metrics if metric != "mIoU"]:
            parts = areas(self.counts).double()
            more = self.total_area_to_metrics(*parts, others, self.nan_to_num, self.beta)
            for name, values in more.items():
                if name not in ("aAcc", "IoU", "Acc"):
                    found[f"m{name}"] = 100 * _mean(np.asarray(values, dtype=np.float64))
        return found


def strict_confusion(
    pred: Tensor, label: Tensor, classes: int, ignore_index: int = IGNORE
) -> tuple[Tensor, Tensor]:
    """Count pixels by true and predicted class, and those outside of the classes.

    Args:
        pred: predicted classes, any shape and integer type.
        label: true classes, same shape.
        classes: number of classes.
        ignore_index: label of the pixels that do not count.

    Returns:
        (classes, classes) int64, rows are true classes; and (2,) int64, the pixels whose label,
        and the pixels whose prediction, is no class.
    """
    if pred.shape != label.shape:
        raise ValueError(f"prediction {tuple(pred.shape)} and label {tuple(label.shape)} differ")
    label, pred = label.reshape(-1).to(torch.int64), pred.reshape(-1).to(torch.int64)
    ignored = label == ignore_index
    rows = torch.where((label < 0) | (label >= classes), classes, label)
    rows = torch.where(ignored, classes + 1, rows)
    columns = torch.where((pred < 0) | (pred >= classes), classes, pred)
    # Spare rows and a spare column instead of boolean indexing, which on a GPU would wait.
    side = classes + 1
    cells = torch.bincount(rows * side + columns, minlength=(classes + 2) * side)
    cells = cells.view(classes + 2, side)
    counted = cells[: classes + 1]
    outside = torch.stack([counted[classes].sum(), counted[:classes, classes].sum()])
    return cells[:classes, :classes], outside

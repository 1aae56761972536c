"""The evaluation metric: pixel counts, and the scores that follow from them."""

import numpy as np
import torch
from torch import Tensor

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
    if pred.shape != label.shape:
        raise ValueError(f"prediction {tuple(pred.shape)} and label {tuple(label.shape)} differ")
    # One histogram with a spare row for the ignored pixels needs no boolean indexing, which on a
    # GPU would wait for the device.
    rows = label.reshape(-1).to(torch.int64).clamp(max=classes)
    cells = rows * classes + pred.reshape(-1)
    counts = torch.bincount(cells, minlength=classes * (classes + 1))
    return counts.view(classes + 1, classes)[:classes]


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

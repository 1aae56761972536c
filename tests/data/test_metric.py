from pathlib import Path

import numpy as np
import pytest
import torch
from fidelity import record

from cae_seg.data.metric import ExactIoUMetric, areas, confusion, scores
from cae_seg.errors import UserError

GOLDEN = Path(__file__).parents[1] / "golden" / "eval.npz"


@pytest.fixture(scope="module")
def golden():
    return np.load(GOLDEN)


@pytest.fixture(scope="module")
def pairs(golden):
    def reduce(raw):  # 0 and 255 are ignored, 1 … 150 become 0 … 149
        return np.where((raw == 0) | (raw == 255), 255, raw - 1)

    return [
        (torch.from_numpy(golden[f"pred{i}"]), torch.from_numpy(reduce(golden[f"label_raw{i}"])))
        for i in range(20)
    ]


def test_areas_of_every_image_equal_the_published_ones(golden, pairs):
    measured = np.stack([areas(confusion(*pair)).numpy() for pair in pairs])
    record("evaluation: areas", np.abs(measured - golden["per_image"]).max(), 0)
    record("evaluation: areas", np.abs(measured.sum(0) - golden["total"]).max(), 0)


def test_scores_equal_the_published_ones(golden, pairs):
    measured = scores(sum(confusion(*pair) for pair in pairs))
    for ours, theirs in (("IoU", "iou"), ("Acc", "acc")):
        assert np.array_equal(np.isnan(measured[ours]), np.isnan(golden[theirs]))
        distance = np.nanmax(np.abs(measured[ours] / 100 - golden[theirs]))
        record("evaluation: IoU and accuracy per class", distance, 1e-12)
    for name in ("mIoU", "mAcc", "aAcc"):
        distance = abs(measured[name] / 100 - float(golden[name]))
        record("evaluation: unrounded mIoU, mAcc, aAcc", distance, 1e-12)


def test_arguments_stay_as_they_were(pairs):
    pred, label = (tensor.clone() for tensor in pairs[0])
    confusion(pred, label)
    assert torch.equal(pred, pairs[0][0])
    assert torch.equal(label, pairs[0][1])


def test_types_and_shapes_do_not_matter(pairs):
    pred, label = pairs[0]
    expected = confusion(pred, label)
    assert torch.equal(confusion(pred.long()[None], label.int()[None]), expected)


def test_nothing_but_ignored_pixels_gives_no_score():
    counts = confusion(torch.zeros(3, 3, dtype=torch.uint8), torch.full((3, 3), 255))
    assert counts.sum() == 0
    assert np.isnan(scores(counts)["mIoU"])


def test_shapes_that_differ_are_refused():
    with pytest.raises(ValueError, match="differ"):
        confusion(torch.zeros(2, 2), torch.zeros(2, 3))


def measure(classes: int, prediction: torch.Tensor, label: torch.Tensor) -> ExactIoUMetric:
    metric = ExactIoUMetric()
    metric.dataset_meta = {"classes": [f"class {number}" for number in range(classes)]}
    sample = {
        "pred_sem_seg": {"data": prediction[None]},
        "gt_sem_seg": {"data": label[None]},
        "img_path": "street.jpg",
    }
    metric.process({}, [sample])
    metric.evaluate(1)
    return metric


def test_the_confusion_matrix_has_the_classes_of_the_data_also_more_than_a_byte_holds():
    labels = torch.arange(300).reshape(15, 20)
    labels[0, 5], labels[12, 15] = 4, 255  # the ignored index takes the place of class 255
    metric = measure(300, labels.clone(), labels)
    assert metric.counts.shape == (300, 300)
    assert metric.counts[299, 299] == 1
    assert metric.scores["mIoU"] == 100


@pytest.mark.parametrize("which", ["prediction", "annotation"])
def test_a_pixel_outside_of_the_classes_is_an_error_not_another_class(which):
    good, bad = torch.zeros(4, 4, dtype=torch.int64), torch.zeros(4, 4, dtype=torch.int64)
    bad[1, 2] = 5
    maps = (bad, good) if which == "prediction" else (good, bad)
    message = f"street.jpg: its {which} has 1 pixels outside of the 5 classes"
    with pytest.raises(UserError, match=message):
        measure(5, *maps)

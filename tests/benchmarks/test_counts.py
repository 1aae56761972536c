"""What a step does on a GPU, counted with fake tensors, against limits."""

import pytest

from benchmarks.counts import counts
from benchmarks.suite import Options


@pytest.fixture(scope="module")
def rows() -> dict[str, dict]:
    """Count in a process of its own: it pretends that there is a CUDA device."""
    return {row["what"]: row for row in counts(Options(quick=True))}


def test_a_training_step_stays_within_its_limits(rows):
    step = rows["ViT-B, training step, batch 2, fp16"]
    assert 700 < step["ours_kernels"] <= 1000 < step["stock_kernels"]
    assert 20 < step["ours_gigabytes"] <= 28 < step["stock_gigabytes"]
    assert 4 < step["ours_tflop"] <= 4.5 < step["stock_tflop"]
    assert step["ours_peak_gb"] < step["stock_peak_gb"]


def test_a_training_step_never_waits_for_the_device(rows):
    step = rows["ViT-B, training step, batch 2, fp16"]
    assert step["ours_waits"] == 0
    assert step["ours_blocking_copies"] == 0
    # The counter sees waiting where there is some.
    assert step["stock_waits"] > 0
    assert step["stock_blocking_copies"] > 0


def test_evaluation_of_an_image_does_less_than_stock(rows):
    image = rows["ViT-B, evaluation of one image of 512 × 683, fp32"]
    assert image["ours_waits"] == image["ours_blocking_copies"] == 0
    for what in ("kernels", "gigabytes", "tflop"):
        assert image[f"ours_{what}"] < image[f"stock_{what}"]


def test_images_of_many_sizes_leave_little_in_memory(rows):
    assert 1 < rows["matrices of an image, 150 sizes"]["kept_megabytes"] <= 200

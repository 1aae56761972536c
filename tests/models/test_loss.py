"""The loss of upsampled logits, by each of its ways, against double precision."""

import pytest
import torch
import torch.nn.functional as F

from cae_seg.models.ops.cpu.loss import progressive_cross_entropy
from cae_seg.models.ops.loss import upsampled_cross_entropy

IGNORED = 255


def batch(size, factor, scale=3.0, classes=7):
    """Return logits of a map, and labels `factor` times its size with ignored ones."""
    generator = torch.Generator().manual_seed(0)
    logits = scale * torch.randn(2, classes, *size, generator=generator)
    shape = (2, *(side * factor for side in size))
    labels = torch.randint(0, classes, shape, generator=generator)
    labels[torch.rand(shape, generator=generator) < 0.2] = IGNORED
    return logits, labels


def loss_of(logits, labels, *, align_corners=False, **ways):
    logits = logits.clone().requires_grad_()
    result = upsampled_cross_entropy(
        logits, labels, ignore_index=IGNORED, align_corners=align_corners, **ways
    )
    result.loss.backward()
    return result.loss.detach(), result.accuracy, logits.grad


def exact(logits, labels, align_corners=False):
    logits = logits.double().requires_grad_()
    full = F.interpolate(logits, labels.shape[1:], mode="bilinear", align_corners=align_corners)
    loss = F.cross_entropy(full, labels, ignore_index=IGNORED, reduction="sum") / labels.numel()
    loss.backward()
    hits = (full.argmax(1) == labels).sum() / (labels != IGNORED).sum().clamp_min(1)
    return loss.detach(), 100 * hits, logits.grad


def sums(logits, labels):
    return progressive_cross_entropy(logits, labels, IGNORED, with_gradient=True)


@pytest.mark.parametrize("scale", [0.1, 3, 12])
@pytest.mark.parametrize("factor", [2, 3, 4, 7, 8, 14, 16, 32])
def test_progressions_have_the_loss_and_gradient_of_double_precision(factor, scale):
    logits, labels = batch((5, 9), factor, scale)
    assert sums(logits, labels) is not None
    expected = exact(logits, labels)
    loss, accuracy, gradient = loss_of(logits, labels, tiled=True, progressive=True)
    torch.testing.assert_close(loss.double(), expected[0], rtol=2e-7, atol=0)
    torch.testing.assert_close(accuracy[0].double(), expected[1].double(), rtol=1e-6, atol=0)
    assert (gradient - expected[2]).norm() < 1e-6 * expected[2].norm()


def test_many_tiles_add_up():
    logits, labels = batch((40, 36), 8, classes=60)
    expected = exact(logits, labels)
    found = loss_of(logits, labels, tiled=True, progressive=True)
    torch.testing.assert_close(found[0].double(), expected[0], rtol=2e-7, atol=0)
    assert (found[2] - expected[2]).norm() < 1e-6 * expected[2].norm()


@pytest.mark.parametrize(
    ("case", "align_corners"),
    [
        ("a height that is no multiple", False),
        ("aligned corners", True),
        ("far apart", False),
        ("equal classes", False),
    ],
)
def test_where_progressions_do_not_apply_the_tiles_are_as_without(case, align_corners):
    logits, labels = batch((6, 5), 4, scale=60 if case == "far apart" else 2)
    if case == "a height that is no multiple":
        labels = labels[:, :-1].contiguous()
    if case == "equal classes":
        logits[:] = logits[:, :1]
    if not align_corners:
        assert sums(logits, labels) is None
    ways = {"align_corners": align_corners, "tiled": True}
    found = loss_of(logits, labels, progressive=True, **ways)
    assert all(map(torch.equal, found, loss_of(logits, labels, progressive=False, **ways)))
    expected = exact(logits, labels, align_corners)
    assert (found[2] - expected[2]).norm() < 1e-5 * expected[2].norm()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_logits_that_are_not_finite_are_left_to_the_tiles(bad):
    logits, labels = batch((6, 5), 4)
    logits[0, 2, 3, 1] = bad
    assert sums(logits, labels) is None


def test_a_batch_without_labels_has_a_loss_and_a_gradient_of_zero():
    logits, labels = batch((6, 5), 4)
    loss, accuracy, gradient = loss_of(
        logits, torch.full_like(labels, IGNORED), tiled=True, progressive=True
    )
    assert loss == 0
    assert accuracy == 0
    assert torch.all(gradient == 0)


def test_half_precision_logits_get_their_gradient_in_half_precision():
    logits, labels = batch((6, 5), 4)
    single = loss_of(logits.bfloat16().float(), labels, tiled=True, progressive=True)
    loss, _, gradient = loss_of(logits.bfloat16(), labels, tiled=True, progressive=True)
    assert gradient.dtype == torch.bfloat16
    assert loss == single[0]
    torch.testing.assert_close(gradient.float(), single[2], rtol=1e-2, atol=0)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_layout_in_memory_changes_no_bit(layout):
    logits, labels = batch((6, 5), 4)
    found = loss_of(logits.to(memory_format=layout), labels, tiled=True, progressive=True)
    expected = loss_of(logits, labels, tiled=True, progressive=True)
    assert all(map(torch.equal, found, expected))

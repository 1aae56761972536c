import pytest
import torch
from mmengine.structures import PixelData
from mmseg.models.decode_heads import FCNHead, UPerHead
from mmseg.structures import SegDataSample

from cae_seg.models.heads.linear import FastLinearHead, LinearHead
from cae_seg.models.heads.upernet import FastFCNHead, FastUPerHead
from cae_seg.models.layers.stochastic import SampleDropout2d

UPER = {"in_channels": [12, 16, 12, 8], "in_index": [0, 1, 2, 3], "channels": 16, "num_classes": 7}
FCN = {
    "in_channels": 12,
    "in_index": 2,
    "channels": 8,
    "num_convs": 1,
    "concat_input": False,
    "num_classes": 7,
}
COMMON = {"norm_cfg": {"type": "BN"}, "dropout_ratio": 0}
HEADS = {"uper": (UPerHead, FastUPerHead, UPER), "fcn": (FCNHead, FastFCNHead, FCN)}


def features() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, c, s, s) for c, s in zip(UPER["in_channels"], (16, 8, 4, 2), strict=True)]
    return [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]


def labels() -> list[SegDataSample]:
    generator = torch.Generator().manual_seed(1)
    samples = []
    for _ in range(2):
        label = torch.randint(0, 7, (1, 70, 61), generator=generator)
        label[torch.rand(label.shape, generator=generator) < 0.2] = 255
        samples.append(SegDataSample(gt_sem_seg=PixelData(data=label)))
    return samples


def pair(kind: str, **ours):
    stock_type, our_type, config = HEADS[kind]
    torch.manual_seed(0)
    stock, head = stock_type(**config, **COMMON), our_type(**config, **COMMON, **ours)
    head.load_state_dict(stock.state_dict(), strict=True)
    return stock, head


def relative(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual - expected).norm() / expected.norm().clamp_min(1e-12))


@pytest.mark.parametrize("fast_paths", [True, False, "always"])
@pytest.mark.parametrize("kind", HEADS)
def test_logits_loss_and_gradients_agree_with_mmsegmentation(kind, fast_paths):
    stock, head = pair(kind, fast_paths=fast_paths)
    theirs, mine = features(), features()
    expected, found = stock(theirs), head(mine)
    assert relative(found, expected) < 2e-6
    expected_loss = stock.loss_by_feat(expected, labels())
    loss = head.loss_by_feat(found, labels())
    assert set(loss) == {"loss_seg", "acc_seg"}
    torch.testing.assert_close(loss["loss_seg"], expected_loss["loss_ce"], rtol=1e-6, atol=0)
    torch.testing.assert_close(loss["acc_seg"], expected_loss["acc_seg"], rtol=1e-6, atol=0)
    expected_loss["loss_ce"].backward()
    loss["loss_seg"].backward()
    for ours, reference in zip(mine, theirs, strict=True):
        if reference.grad is not None:
            assert relative(ours.grad, reference.grad) < 1e-5
    for (name, ours), reference in zip(head.named_parameters(), stock.parameters(), strict=True):
        # Batch norm over two pooled values amplifies rounding.
        assert relative(ours.grad, reference.grad) < 1e-4, name


def test_dropout_is_per_sample_and_off_in_eval_mode():
    head = FastUPerHead(**UPER, **(COMMON | {"dropout_ratio": 0.5}))
    assert isinstance(head.dropout, SampleDropout2d)
    head.eval()
    with torch.no_grad():
        assert torch.equal(head(features()), head(features()))


def test_other_losses_stay_mmsegmentations():
    config = {"type": "CrossEntropyLoss", "avg_non_ignore": True, "loss_name": "loss_other"}
    _, head = pair("fcn", loss_decode=config)
    assert "loss_other" in head.loss_by_feat(head(features()), labels())


def test_a_batch_of_ignored_pixels_has_a_loss_of_zero():
    _, head = pair("fcn")
    samples = labels()
    for sample in samples:
        sample.gt_sem_seg.data.fill_(255)
    found = head.loss_by_feat(head(features()), samples)
    assert found["loss_seg"].item() == 0
    assert found["acc_seg"].item() == 0


def test_bfloat16_autocast_trains():
    _, head = pair("uper", fast_paths="always")
    with torch.autocast("cpu", torch.bfloat16):
        loss = head.loss_by_feat(head(features()), labels())["loss_seg"]
    loss.backward()
    assert loss.dtype == torch.float32
    assert all(torch.isfinite(p.grad).all() for p in head.parameters())


def test_linear_head_has_the_loss_and_gradients_of_the_plain_form():
    torch.manual_seed(0)
    settings = {"in_channels": 8, "in_index": 0, "num_classes": 6}
    settings["norm_cfg"] = {"type": "BN"}
    plain, fast = LinearHead(**settings), FastLinearHead(**settings)
    fast.load_state_dict(plain.state_dict())
    x, labels = torch.randn(2, 8, 5, 7), torch.randint(0, 6, (2, 1, 40, 56))
    labels[:, :, :3] = 255
    samples = [SegDataSample(gt_sem_seg=PixelData(data=label)) for label in labels]
    found = []
    for head in (plain, fast):
        loss = head.loss_by_feat(head([x]), samples)
        loss["loss_ce" if head is plain else "loss_seg"].backward()
        found.append((loss["acc_seg"], [p.grad for p in head.parameters()]))
    (accuracy, gradients), (fast_accuracy, fast_gradients) = found
    torch.testing.assert_close(fast_accuracy.flatten(), accuracy.flatten())
    torch.testing.assert_close(fast_gradients, gradients, rtol=1e-4, atol=1e-7)

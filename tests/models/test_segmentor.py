"""From images to labels: against the published code, and between the fast paths and mmseg's own."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fidelity import largest, record, relative
from golden import weights
from models.segmentors import TINY, samples, tiny, with_dropout

from cae_seg.errors import UserError
from cae_seg.models.accelerate import FAST_PATHS
from cae_seg.models.layers.stochastic import set_randomness

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "slide.npz")
SIZE = tuple(GOLDEN["ori_shape"].tolist())
SLIDE = {"mode": "slide", "crop_size": (64, 64), "stride": (43, 43)}
PATHS = pytest.mark.parametrize("fast_paths", ["always", True, False])


def sure() -> np.ndarray:
    """Pixels whose two best logits differ by more than 1e-4."""
    return np.unpackbits(GOLDEN["sure"], count=SIZE[0] * SIZE[1]).reshape(SIZE).astype(bool)


def model(fast_paths, **overrides):
    return tiny(weights.slide(), fast_paths=fast_paths, **overrides)


@PATHS
def test_slide_logits_equal_the_published(fast_paths):
    segmentor, image = model(fast_paths), weights.slide_input()
    with torch.no_grad():
        logits = segmentor.slide_inference(image, [{"ori_shape": SIZE}])
        (sample,) = model(
            fast_paths,
            test_cfg={
                "mode": "slide",
                "crop_size": (64, 64),
                "stride": (43, 43),
                "seg_logits": True,
            },
        ).predict(image, samples(torch.zeros(1, 1, *SIZE), ori_shape=SIZE, img_shape=(100, 150)))
    golden = torch.from_numpy(GOLDEN["slide_logits"])
    found = logits[0, ::10, ::5, ::5]
    record("slide inference: logits before resizing, relative", relative(found, golden), 1e-5)
    golden = torch.from_numpy(GOLDEN["rescaled_logits"])
    found = sample.seg_logits.data[::10, ::5, ::5]
    record("slide inference: logits after resizing, relative", relative(found, golden), 1e-5)


@PATHS
def test_heads_equal_the_published(fast_paths):
    segmentor, crop = model(fast_paths), weights.slide_input()[..., :64, :64]
    with torch.no_grad():
        features = segmentor.extract_feat(crop)
        decoded = segmentor.decode_head(features)[0, ::3, ::2, ::2]
        auxiliary = segmentor.auxiliary_head(features)[0]
    for name, found in (("head_out_crop0", decoded), ("aux_out_crop0", auxiliary)):
        record("heads: logits, relative", relative(found, torch.from_numpy(GOLDEN[name])), 1e-5)


@PATHS
def test_predictions_equal_the_published(fast_paths):
    segmentor, image = model(fast_paths), weights.slide_input()[0]
    (plain,) = segmentor.predict_labels([image], [SIZE])
    assert plain.dtype == torch.uint8
    wrong = (plain.numpy() != GOLDEN["pred"])[sure()].mean()
    record("slide inference: predictions that differ where margin > 1e-4", wrong, 0)
    (both,) = segmentor.predict_labels([image], [SIZE], aug=True)
    # The margin of the mean of two soft-maxes is another one; no pixel of this image is unsure.
    wrong = (both.numpy() != GOLDEN["pred_aug_noflip_plus_flip"]).mean()
    record("flip test-time augmentation: predictions that differ", wrong, 0)


@PATHS
def test_flipped_prediction_equals_the_published(fast_paths):
    flipped = weights.slide_input().flip(-1)
    (sample,) = model(fast_paths).predict(
        flipped,
        samples(
            torch.zeros(1, 1, *SIZE),
            ori_shape=SIZE,
            img_shape=(100, 150),
            flip=True,
            flip_direction="horizontal",
        ),
    )
    found = sample.pred_sem_seg.data
    assert found.shape == (1, *SIZE)
    record("flip: predictions that differ", (found[0].numpy() != GOLDEN["pred_flip"]).mean(), 0)


@PATHS
def test_whole_mode_equals_the_published(fast_paths):
    segmentor = model(fast_paths, test_cfg={"mode": "whole", "seg_logits": True})
    crop = weights.slide_input()[..., :64, :64]
    with torch.no_grad():
        (sample,) = segmentor.predict(
            crop, samples(torch.zeros(1, 1, 80, 96), ori_shape=(80, 96), img_shape=(64, 64))
        )
    found = sample.seg_logits.data.softmax(0)[::10, ::4, ::4]
    distance = largest(found, torch.from_numpy(GOLDEN["whole64_prob"]))
    record("whole inference: probabilities, largest difference", distance, 1e-5)
    (labels,) = segmentor.predict_labels([crop[0]], [(80, 96)])
    assert torch.equal(labels.long(), sample.pred_sem_seg.data[0])


def images() -> tuple[list[torch.Tensor], list[tuple[int, int]]]:
    """Images of several sizes and aspect ratios, two with a side shorter than the crop."""
    sizes = [(64, 64), (64, 200), (30, 150), (97, 40), (65, 64)]
    generator = torch.Generator().manual_seed(4)
    pictures = [torch.randn(3, *size, generator=generator) for size in sizes]
    return pictures, [(81, 77), (64, 200), (41, 203), (100, 43), (20, 30)]


def compare(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.shape == theirs.shape
        assert (mine != theirs).float().mean() < 1e-3


@pytest.mark.parametrize("aug", [False, True])
@pytest.mark.parametrize("per_batch", [1, 3, 64])
def test_batches_of_windows_predict_as_single_ones(aug, per_batch):
    pictures, sizes = images()
    plain = model(False).predict_labels(pictures, sizes, aug)
    fast = model(True, test_cfg=SLIDE | {"windows_per_batch": per_batch})
    compare(fast.predict_labels(pictures, sizes, aug), plain)


@pytest.mark.parametrize("fast_paths", [True, False])
def test_multi_scale_averages_the_soft_maxes(fast_paths):
    segmentor, image = model(fast_paths), weights.slide_input()
    scales = [image, F.interpolate(image, (75, 112)), F.interpolate(image, (150, 225))]
    (labels,) = segmentor.predict_labels([[x[0] for x in scales]], [SIZE], aug=True)
    total = 0
    with torch.no_grad():
        for x in scales:
            for flipped in (False, True):
                logits = segmentor.slide_inference(x.flip(-1) if flipped else x, [{}])
                logits = F.interpolate(logits, SIZE, mode="bilinear")
                total = total + (logits.flip(-1) if flipped else logits).softmax(1)
    compare([labels], [total[0].argmax(0).to(torch.uint8)])


def test_short_sides_are_filled_with_the_mean_colour():
    segmentor = model(True)
    image = torch.randn(3, 30, 150, generator=torch.Generator().manual_seed(0))
    filled = F.pad(image, (0, 0, 0, 34))
    (labels,) = segmentor.predict_labels([image], [(30, 150)])
    (whole,) = segmentor.predict_labels([filled], [(64, 150)])
    compare([labels], [whole[:30]])


def test_predict_cuts_padding_away():
    segmentor, image = model(True), weights.slide_input()
    padded = F.pad(image, (0, 10, 0, 28))
    meta = {"ori_shape": SIZE, "img_shape": (100, 150), "img_padding_size": [0, 10, 0, 28]}
    (sample,) = segmentor.predict(padded, samples(torch.zeros(1, 1, *SIZE), **meta))
    compare([sample.pred_sem_seg.data[0]], [torch.from_numpy(GOLDEN["pred"])])


def test_no_auxiliary_head_at_test_time():
    segmentor = model(True)
    segmentor.auxiliary_head.forward = None
    segmentor.predict_labels([weights.slide_input()[0]], [SIZE])


def test_pretrained_becomes_the_start_of_the_backbone():
    segmentor = tiny(pretrained="some.pth")
    assert segmentor.backbone.init_cfg == {"type": "Pretrained", "checkpoint": "some.pth"}
    with pytest.raises(UserError, match="leave one"):
        tiny(
            pretrained="some.pth",
            backbone={"type": "CAE", "init_cfg": {"type": "Pretrained", "checkpoint": "b.pth"}},
        )


def test_fast_paths_are_named_for_the_record():
    assert tiny().active_fast_paths == list(FAST_PATHS)
    segmentor = tiny(fast_paths={"winograd": False})
    assert segmentor.active_fast_paths == [name for name in FAST_PATHS if name != "winograd"]
    assert segmentor.decode_head.fast_paths["winograd"] is False
    assert segmentor.backbone.blocks[0].attn.fast
    assert not tiny(fast_paths={"efficient_attention": False}).backbone.blocks[0].attn.fast
    with pytest.raises(UserError, match="fast_paths"):
        tiny(fast_paths={"wings": True})


def test_maps_that_only_laterals_read_are_merged_with_them():
    crop = weights.slide_input()[..., :64, :64]
    merged = model(True)
    apart = model({"merged_laterals": False})
    assert merged.state_dict().keys() == apart.state_dict().keys()
    for head in (1, [0, 2], -4):  # the auxiliary head reads a deconvolved map too
        auxiliary = {**TINY["auxiliary_head"], "in_index": head}
        if isinstance(head, list):
            auxiliary |= {"in_channels": [64, 64], "input_transform": "resize_concat"}
        tiny(auxiliary_head=auxiliary, fast_paths="always").loss(
            crop, samples(torch.zeros(1, 1, 64, 64))
        )
    with torch.no_grad():
        shapes = [tuple(found.shape) for found in merged.extract_feat(crop)]
        assert shapes == [(1, 64, side, side) for side in (16, 8, 4, 2)]
        merged.backbone.fpn1[-1].forward = None  # not called
        found, expected = merged(crop), apart(crop)
    assert relative(found, expected) < 2e-6


NECK = {"type": "Feature2Pyramid", "embed_dim": 64, "norm_cfg": {"type": "BN"}}


def name_in_neck(name: str) -> str:
    return name.replace("backbone.fpn1", "neck.upsample_4x").replace(
        "backbone.fpn2", "neck.upsample_2x"
    )


def with_neck(fast_paths):
    """Build the tiny segmentor with its pyramid as a neck, as timm's flat models have it."""
    own = {name_in_neck(name): value for name, value in weights.slide().items()}
    backbone = {**TINY["backbone"], "type": "CAEBlocks"}
    return tiny(own, fast_paths=fast_paths, backbone=backbone, neck=NECK)


@pytest.mark.parametrize("fast_paths", ["always", {"merged_laterals": False}, False])
def test_a_pyramid_in_a_neck_gives_what_one_in_the_backbone_gives(fast_paths):
    crop = weights.slide_input()[..., :64, :64]
    ours, expected = with_neck(fast_paths), model(False)
    with torch.no_grad():
        assert relative(ours(crop), expected(crop)) < 5e-6
    x, y = (batch[0] for batch in weights.train_batches())
    for segmentor in (ours, expected):
        segmentor.train()
        segmentor.parse_losses(segmentor.loss(x, samples(y)))[0].backward()
    found = {name: p.grad for name, p in ours.named_parameters()}
    for name, parameter in expected.named_parameters():
        # Batch norm takes away what a bias before it adds: the gradient of a bias is rounding.
        if name.startswith("backbone.fpn") and name.endswith("weight"):
            assert relative(found[name_in_neck(name)], parameter.grad) < 1e-4, name


def test_maps_of_a_neck_that_only_laterals_read_are_merged_with_them():
    merged = with_neck(True)
    merged.neck.upsample_4x[-1].forward = None  # not called
    with torch.no_grad():
        merged(weights.slide_input()[..., :64, :64])
    with pytest.raises(TypeError):
        merged.extract_feat(weights.slide_input()[..., :64, :64])


def test_merged_laterals_are_as_near_to_float32_as_separate_ones_in_half_precision():
    x, y = (batch[0] for batch in weights.train_batches())

    def gradients(on: bool, dtype: torch.dtype) -> torch.Tensor:
        segmentor = model({"merged_laterals": "always" if on else False}).train()
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            losses = segmentor.loss(x, samples(y))
        (losses["decode.loss_seg"] + losses["aux.loss_seg"]).backward()
        names = (
            "fpn1.3.weight",
            "fpn2.0.weight",
            "lateral_convs.0.conv.weight",
            "lateral_convs.1.conv.weight",
            "fpn1.0.weight",
        )
        found = {n: p.grad.flatten() for n, p in segmentor.named_parameters() if n.endswith(names)}
        assert len(found) == len(names)
        return torch.cat([gradient / gradient.norm() for gradient in found.values()])

    exact = gradients(False, torch.float32)
    assert relative(gradients(True, torch.float32), exact) < 1e-5
    apart = relative(gradients(False, torch.bfloat16), exact)
    merged = relative(gradients(True, torch.bfloat16), exact)
    assert merged < 1.5 * apart


# Their backward on CUDA adds in no fixed order; torch refuses them in deterministic mode.
NOT_DETERMINISTIC = (
    "AdaptiveAvgPool2D",
    "UpsampleBilinear2D",
    "NllLoss2D",
    "ReflectionPad",
    "Index",
    "Embedding",
    "GridSampler",
    "AdaptiveMaxPool",
    "CumsumBackward",
    "PutBackward",
)


def nodes(loss: torch.Tensor) -> set[str]:
    """Names of all backward steps that a loss depends on."""
    seen, waiting = set(), [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting.extend(parent for parent, _ in node.next_functions)
    return {node.name() for node in seen}


@PATHS
def test_backward_has_no_step_that_cuda_cannot_repeat(fast_paths):
    segmentor = model(fast_paths, **with_dropout()).train()
    x, y = (batch[0] for batch in weights.train_batches())
    losses = segmentor.loss(x, samples(y))
    names = nodes(losses["decode.loss_seg"] + losses["aux.loss_seg"])
    assert any("SampleMask" in n or "Mul" in n for n in names)
    assert not [n for n in names if n.startswith(NOT_DETERMINISTIC)]


@PATHS
def test_two_runs_are_identical(fast_paths):
    assert_repeats(fast_paths, "cpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@PATHS
def test_two_runs_are_identical_on_cuda(fast_paths):
    assert_repeats(fast_paths, "cuda", torch.float32)
    assert_repeats(fast_paths, "cuda", torch.float16)


def assert_repeats(fast_paths, device: str, dtype: torch.dtype = torch.float32) -> None:
    """Train two steps twice in torch's deterministic mode and compare every weight."""
    torch.use_deterministic_algorithms(True)
    try:
        first, second = (
            two_steps(model(fast_paths, **with_dropout()).to(device), dtype) for _ in range(2)
        )
    finally:
        torch.use_deterministic_algorithms(False)
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def two_steps(segmentor, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    segmentor.train()
    device = next(segmentor.parameters()).device
    optimizer = torch.optim.AdamW(segmentor.parameters(), lr=1e-3)
    images_, labels = (batch.to(device) for batch in weights.train_batches())
    for i in range(2):
        set_randomness(segmentor, seed=0, iteration=i, first_sample=0, samples=2, total=2)
        half = torch.autocast(device.type, dtype, enabled=dtype != torch.float32)
        with half:
            losses = segmentor.loss(images_[i], samples(labels[i]))
        (losses["decode.loss_seg"] + losses["aux.loss_seg"]).backward()
        optimizer.step()
        optimizer.zero_grad()
    return segmentor.state_dict()

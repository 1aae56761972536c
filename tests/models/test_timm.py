"""Any timm model as a backbone: taps, pyramid, padding, layer ids, weights, refusals."""

import re

import pytest
import torch
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS
from safetensors.torch import save_file
from segmentors import TINY, samples

import cae_seg.registration  # noqa: F401
from cae_seg.errors import UserError
from cae_seg.models.backbones.timm import TimmModel, default_indices, probe_timm
from cae_seg.models.compose import compose_model

FLAT, FOUR = "flat", (4.0, 8.0, 16.0, 32.0)
# Full-size model, a small one of the same family, and the strides.
FAMILIES = {
    "vit_base_patch16_224.augreg_in21k": ("vit_tiny_patch16_224", FLAT),
    "vit_base_patch16_dinov3.lvd1689m": ("vit_small_patch16_dinov3", FLAT),
    "vit_large_patch14_dinov2.lvd142m": ("vit_small_patch14_dinov2", FLAT),
    "vit_base_patch14_reg4_dinov2": ("vit_small_patch14_reg4_dinov2", FLAT),
    "vit_base_patch16_siglip_512.webli": ("vit_base_patch32_siglip_256", FLAT),
    "vit_base_patch8_224": ("vit_small_patch8_224", FLAT),
    "deit3_base_patch16_224": ("deit3_small_patch16_224", FLAT),
    "deit_base_distilled_patch16_224": ("deit_tiny_distilled_patch16_224", FLAT),
    "beit_base_patch16_224": (None, FLAT),
    "beitv2_base_patch16_224": (None, FLAT),
    "eva02_base_patch14_224": ("eva02_tiny_patch14_224", FLAT),
    "samvit_base_patch16": (None, FLAT),
    "cait_s24_224": ("cait_xxs24_224", FLAT),
    "xcit_small_12_p16_224": ("xcit_nano_12_p16_224", FLAT),
    "xcit_small_12_p8_224": ("xcit_nano_12_p8_224", FLAT),
    "mixer_b16_224": (None, FLAT),
    "vit_base_r50_s16_224": (None, FLAT),
    "swin_base_patch4_window7_224": ("swin_tiny_patch4_window7_224", FOUR),
    "swinv2_base_window8_256": ("swinv2_tiny_window8_256", FOUR),
    "twins_svt_base": ("twins_svt_small", FOUR),
    "pvt_v2_b3": ("pvt_v2_b0", FOUR),
    "mvitv2_base": ("mvitv2_tiny", FOUR),
    "hiera_base_224": ("hiera_tiny_224", FOUR),
    "sam2_hiera_base_plus": ("sam2_hiera_tiny", FOUR),
    "coatnet_2_rw_224": ("coatnet_nano_rw_224", FOUR),
    "convnext_base.dinov3_lvd1689m": ("convnext_atto", FOUR),
    "convnextv2_base": ("convnextv2_atto", FOUR),
    "resnet50": ("resnet18", FOUR),
    "resnext50_32x4d": ("resnet26t", FOUR),
    "regnety_032": ("regnety_002", FOUR),
    "efficientnet_b3": ("efficientnet_b0", FOUR),
    "tf_efficientnetv2_m": ("tf_efficientnetv2_b0", FOUR),
    "mobilenetv3_large_100": ("mobilenetv3_small_050", FOUR),
    "mobilenetv4_conv_large": ("mobilenetv4_conv_small", FOUR),
    "focalnet_base_srf": ("focalnet_tiny_srf", FOUR),
    "davit_base": ("davit_tiny", FOUR),
    "edgenext_base": ("edgenext_xx_small", FOUR),
    "poolformer_m36": ("poolformer_s12", FOUR),
    "fastvit_sa24": ("fastvit_t8", FOUR),
    "tiny_vit_21m_224": ("tiny_vit_5m_224", FOUR),
    "mambaout_base": ("mambaout_femto", FOUR),
    "densenet121": (None, FOUR),
}
QUICK = {
    "vit_base_patch16_dinov3.lvd1689m",
    "vit_large_patch14_dinov2.lvd142m",
    "xcit_small_12_p8_224",
    "convnextv2_base",
    "resnet50",
}


def marked(names):
    return [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in names]


def segmentor(name: str, size: int = 64, **choice) -> torch.nn.Module:
    """Build a segmentor whose recipe is the tiny one's, over a timm model."""
    init_default_scope("mmseg")
    torch.manual_seed(0)
    config = TINY | {"data_preprocessor": {"type": "SegDataPreProcessor", "size": (size, size)}}
    return MODELS.build(compose_model(config, timm=name, **choice))


def test_list_of_models_is_of_forty_families():
    assert len(FAMILIES) >= 40


@pytest.mark.parametrize("name", marked(FAMILIES))
def test_full_size_model_gives_four_maps_of_the_expected_strides(name):
    taps = probe_timm(name, (512, 512))
    assert len(taps.channels) == 4
    if FAMILIES[name][1] == FLAT:
        assert len(set(taps.strides)) == 1
        assert taps.strides[0] in (8, 14, 16)
    else:
        assert taps.strides == FAMILIES[name][1]
    assert all(0 < value < 255 for value in (*taps.mean, *taps.std)) or taps.mean == (0.0,) * 3


@pytest.mark.parametrize("name", marked(n for n, (small, _) in FAMILIES.items() if small))
def test_small_model_trains_under_upernet_and_every_trained_parameter_has_a_gradient(name):
    small = FAMILIES[name][0]
    if probe_timm(small, (64, 64)).strides[0] == 32:
        pytest.skip("its patches of 32 have no pyramid")
    model = segmentor(small).train()
    images = torch.randn(2, 3, 64, 64)
    labels = torch.randint(0, 150, (2, 1, 64, 64))
    losses = model.loss(images, samples(labels))
    sum(v for k, v in losses.items() if "loss" in k).backward()
    without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not without
    assert model.eval()(images).shape[:2] == (2, 150)


def test_taps_are_those_of_published_recipes():
    assert default_indices([16] * 12) == (3, 5, 7, 11)
    assert default_indices([16] * 24) == (7, 11, 15, 23)
    assert default_indices([2, 4, 8, 16, 32]) == (1, 2, 3, 4)
    assert default_indices([4, 4, 8, 8, 16, 32]) == (1, 3, 4, 5)


@pytest.mark.parametrize(
    ("name", "strides"), [("vit_small_patch14_dinov2", 14), ("vit_small_patch8_224", 8)]
)
def test_pyramid_brings_other_patches_to_four_scales(name, strides):
    model = segmentor(name, size=112).eval()
    with torch.no_grad():
        maps = model.extract_feat(torch.zeros(1, 3, 112, 112))
    sides = [m.shape[2] for m in maps]
    assert sides[0] == 2 * sides[1] == 4 * sides[2]
    assert 112 // strides in sides


def test_image_is_padded_to_whole_patches_on_all_sides():
    model = TimmModel("vit_small_patch14_dinov2", img_size=64).eval()
    assert model.taps.img_size == (70, 70)
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        padded = torch.nn.functional.pad(image, (3, 3, 3, 3))
        assert torch.equal(model(image)[3], model(padded)[3])


def test_normalisation_is_the_model_s():
    size = {"type": "SegDataPreProcessor", "size": (64, 64)}
    config = compose_model(TINY | {"data_preprocessor": size}, timm="vit_base_patch16_siglip_512")
    assert config["data_preprocessor"]["mean"] == [127.5] * 3
    assert config["data_preprocessor"]["std"] == [127.5] * 3


def test_layers_of_the_decay_are_those_of_the_model_s_group_matcher():
    model = segmentor("vit_tiny_patch16_224")
    wrapper = build_optim_wrapper(
        model,
        {
            "type": "OptimWrapper",
            "optimizer": {"type": "AdamW", "lr": 1e-3, "weight_decay": 0.05},
            "constructor": "CAELayerDecay",
            "paramwise_cfg": {"layer_decay_rate": 0.5},
        },
    )
    scale = {n: g["lr_scale"] for g in wrapper.optimizer.param_groups for n in g["param_names"]}
    assert scale["backbone.model.patch_embed.proj.weight"] == pytest.approx(0.5**13)
    assert scale["backbone.model.blocks.0.attn.qkv.weight"] == pytest.approx(0.5**12)
    assert scale["backbone.model.blocks.11.attn.qkv.weight"] == pytest.approx(0.5)
    assert scale["decode_head.conv_seg.weight"] == scale["neck.upsample_2x.0.weight"] == 1


def test_timm_s_own_file_fills_the_model(tmp_path):
    import timm

    whole = timm.create_model("vit_tiny_patch16_224", img_size=96)
    path = tmp_path / "vit.safetensors"
    save_file(whole.state_dict(), path)
    start = {"type": "Pretrained", "checkpoint": str(path)}
    model = TimmModel("vit_tiny_patch16_224", img_size=96, init_cfg=start)
    model.init_weights()
    image = torch.randn(1, 3, 96, 96)
    with torch.no_grad():
        ours = model.eval()(image)[-1].flatten(2).mT
        assert torch.allclose(ours, whole.eval().forward_features(image)[:, 1:], atol=1e-5)
    assert not model.pretrained_report.initialised
    assert {"head.weight", "head.bias"} <= set(model.pretrained_report.dropped)


def test_position_embedding_is_resized_without_smoothing(tmp_path):
    import timm

    whole = timm.create_model("vit_tiny_patch16_224", img_size=224)
    torch.save(whole.state_dict(), tmp_path / "vit.pth")
    start = {"type": "Pretrained", "checkpoint": str(tmp_path / "vit.pth")}
    model = TimmModel("vit_tiny_patch16_224", img_size=96, init_cfg=start)
    model.init_weights()
    grid = whole.pos_embed[:, 1:].detach().mT.unflatten(2, (14, 14))
    resized = torch.nn.functional.interpolate(grid, size=(6, 6), mode="bicubic")
    assert torch.allclose(model.model.pos_embed[:, 1:], resized.flatten(2).mT, atol=1e-6)


def test_other_model_s_file_is_refused_in_one_line(tmp_path):
    import timm

    torch.save(timm.create_model("vit_tiny_patch16_224").state_dict(), tmp_path / "tiny.pth")
    start = {"type": "Pretrained", "checkpoint": str(tmp_path / "tiny.pth")}
    model = TimmModel("vit_small_patch16_224", img_size=224, init_cfg=start)
    with pytest.raises(UserError, match=r"tiny.pth: model.cls_token is \(1, 1, 192\)") as caught:
        model.init_weights()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("vit_base_patch16_dinov4", "no such model.*nearest: vit_base_patch16_dino"),
        ("crossvit_base_240", "cannot be a backbone"),
        ("hardcorenas_a", None),
    ],
)
def test_model_that_cannot_work_is_refused_in_one_line(name, reason):
    if reason is None:
        assert probe_timm(name, (512, 512)).channels
        return
    with pytest.raises(UserError, match=reason) as caught:
        probe_timm(name, (512, 512))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("head", ["upernet", "linear", "linear_4", "setr_naive", "fcn"])
def test_frozen_backbone_keeps_its_weights_and_mode(head):
    model = segmentor("vit_tiny_patch16_224", head=head, frozen=True).train()
    before = {n: t.clone() for n, t in model.backbone.state_dict().items()}
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    labels = torch.randint(0, 150, (2, 1, 64, 64))
    losses = model.loss(torch.randn(2, 3, 64, 64), samples(labels))
    sum(v for k, v in losses.items() if "loss" in k).backward()
    optimiser.step()
    assert not model.backbone.body.training
    assert all(torch.equal(t, before[n]) for n, t in model.backbone.state_dict().items())
    assert all(p.grad is None for p in model.backbone.parameters())
    assert all(p.grad is not None for p in model.decode_head.parameters())


def test_linear_head_is_batch_norm_and_one_convolution():
    model = segmentor("vit_tiny_patch16_224", head="linear", frozen=True)
    names = {n for n, p in model.named_parameters() if p.requires_grad}
    parts = ("bn.weight", "bn.bias", "conv_seg.weight", "conv_seg.bias")
    assert names == {f"decode_head.{part}" for part in parts}
    assert model.decode_head.conv_seg.weight.shape == (150, 192, 1, 1)
    four = segmentor("vit_tiny_patch16_224", head="linear_4", frozen=True)
    assert four.decode_head.conv_seg.weight.shape == (150, 4 * 192, 1, 1)
    assert four.backbone.body.taps.indices == (8, 9, 10, 11)


@pytest.mark.parametrize("head", ["linear", "setr_naive", "setr_pup", "setr_mla", "fcn", "upernet"])
def test_heads_work_over_cae_and_resume_from_its_files(head):
    init_default_scope("mmseg")
    size = {"type": "SegDataPreProcessor", "size": (64, 64)}
    config = compose_model(TINY | {"data_preprocessor": size}, head=head)
    model = MODELS.build(config).eval()
    with torch.no_grad():
        assert model(torch.zeros(1, 3, 64, 64)).shape[:2] == (1, 150)
    assert config["backbone"]["type"] == ("CAE" if head == "upernet" else "CAEBlocks")


def test_head_that_the_backbone_cannot_feed_is_refused():
    with pytest.raises(UserError, match="setr_pup needs a plain vision transformer"):
        segmentor("resnet18", head="setr_pup")
    with pytest.raises(UserError, match=re.escape("head: unet: no such head; choose one of")):
        segmentor("resnet18", head="unet")

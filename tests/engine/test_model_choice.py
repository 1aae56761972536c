"""The model of a run by name: timm model, head, frozen backbone, in a config's own keys."""

import pytest
import torch

from cae_seg.config_files import find_config
from cae_seg.engine.build import build_model
from cae_seg.engine.config import load_config
from cae_seg.engine.job import Knobs
from cae_seg.engine.weights import load_weights
from cae_seg.errors import UserError
from cae_seg.models.compose import compose_model

DEMO = "upernet_cae_tiny_demo"


def test_timm_model_and_head_replace_the_config_s_own():
    options = {"model.timm": "vit_tiny_patch16_224", "model.head": "linear", "model.frozen": True}
    config = load_config(DEMO, options)
    assert config.model.backbone.type == "Frozen"
    assert config.model.backbone.backbone.model_name == "vit_tiny_patch16_224"
    assert config.model.decode_head.type == "LinearHead"
    assert not {"timm", "head", "frozen"} & set(config.model)
    model = build_model(config, 0, start=True).eval()
    with torch.no_grad():
        assert model(torch.zeros(1, 3, 96, 96)).shape[:2] == (1, 150)


def test_what_no_pretraining_fills_is_trained_over_a_frozen_cae(tmp_path):
    checkpoint = tmp_path / "cae.pth"
    options = {"model.frozen": True}
    model = build_model(load_config(DEMO, options), 0, start=True).train()
    torch.save({"model": model.backbone.body.state_dict()}, checkpoint)
    config = load_config(DEMO, options | {"model.pretrained": str(checkpoint)})
    model = build_model(config, 0, start=True).train()
    assert not model.backbone.pretrained_report.initialised
    trained = {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"neck", "decode_head", "auxiliary_head"}
    pyramid = build_model(load_config(DEMO, {}), 0, start=True).backbone.fpn1
    assert [m.weight.shape for m in (model.neck.upsample_4x[0], model.neck.upsample_4x[3])] == [
        m.weight.shape for m in (pyramid[0], pyramid[3])
    ]


OWN_HEAD = """
model = dict(
    decode_head=dict(type="FCNHead", in_channels=7, in_index=1, channels=8, num_classes=21),
    auxiliary_head=[dict(type="FCNHead", in_channels=7, in_index=3, channels=8, num_classes=21)],
)
"""


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        ("mmseg::pspnet/pspnet_r50-d8_4xb4-80k_ade20k-512x512.py", "PSPHead"),
        ("upernet_swin_tiny_patch4_window7_512x512_160k_ade20k", "UPerHead"),
        ("setr_mla_512x512_160k_ade20k_bs_16", "MLAHead"),
        ("own", "FCNHead"),
    ],
)
def test_head_of_a_config_fits_the_backbone_and_the_classes(head, kind, tmp_path):
    if head == "own":
        head = str(tmp_path / "head.py")
        (tmp_path / "head.py").write_text(OWN_HEAD)
    config = load_config(DEMO, {"model.head": head})
    assert config.model.decode_head.type == kind
    assert config.model.backbone.type == "CAEBlocks"
    model = build_model(config, 0, start=True).eval()
    with torch.no_grad():
        assert model(torch.zeros(1, 3, 96, 96)).shape[:2] == (1, 150)


def test_head_of_a_config_that_reads_more_maps_is_refused(tmp_path):
    (tmp_path / "head.py").write_text(OWN_HEAD.replace("in_index=3", "in_index=5"))
    with pytest.raises(UserError, match="head: FCNHead reads map 6, the backbone has 4"):
        load_config(DEMO, {"model.head": str(tmp_path / "head.py")})


def test_no_checkpoint_replaces_that_of_the_config():
    swin = "mmseg::swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py"
    assert load_config(swin).model.backbone.init_cfg.checkpoint
    assert load_config(swin, {"model.pretrained": None}).model.backbone.init_cfg is None


def test_crop_size_and_options_reach_the_new_backbone():
    options = {"model.timm": "vit_tiny_patch16_224", "model.backbone.drop_path_rate": 0.2}
    config = load_config(DEMO, options, Knobs(crop_size=(64, 64)))
    assert tuple(config.model.backbone.img_size) == (64, 64)
    assert config.model.backbone.drop_path_rate == 0.2


def test_file_may_name_the_model_too(tmp_path):
    path = tmp_path / "probe.py"
    base = find_config(DEMO).resolve()
    path.write_text(f'_base_ = ["{base}"]\nmodel = dict(timm="resnet18", head="fcn")\n')
    config = load_config(path)
    assert config.model.backbone.model_name == "resnet18"
    assert config.model.decode_head.in_channels == 512


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model.timm": "vit_tiny_patch16_225"}, "no such model in timm"),
        ({"model.head": "unet"}, "head: unet: no such head"),
        ({"model.frozen": "maybe"}, "model.frozen: 'maybe' is neither True nor False"),
        ({"model.timm": "resnet18", "model.head": "setr_mla"}, "needs a plain vision transformer"),
    ],
)
def test_choice_that_cannot_work_is_refused(options, message):
    with pytest.raises(UserError, match=message):
        load_config(DEMO, options)


def test_published_weights_are_loaded_under_their_own_names(tmp_path):
    """As `cae-seg evaluate` does: XCiT's pyramid is part of the backbone in its own code."""
    config = load_config(
        "upernet_xcit_small_12_p16_160k_ade20k",
        {"model.neck.embed_dim": 16, "model.decode_head.in_channels": [16] * 4}
        | {"model.decode_head.channels": 16, "model.auxiliary_head.in_channels": 16},
    )
    config.model.backbone.options = {"embed_dim": 16, "num_heads": 2}
    model = build_model(config, 0, start=False)
    own = {n: torch.full_like(t, 0.5) for n, t in model.state_dict().items()}
    rules = {
        "neck.upsample_4x.": "backbone.fpn1.",
        "neck.upsample_2x.": "backbone.fpn2.",
        "backbone.model.pos_embed.": "backbone.pos_embeder.",
        "backbone.model.": "backbone.",
    }
    published = {}
    for name, value in own.items():
        old, new = next(((o, n) for o, n in rules.items() if name.startswith(o)), ("", ""))
        published[new + name.removeprefix(old)] = value
    torch.save({"state_dict": published, "meta": {}}, tmp_path / "xcit.pth")
    load_weights(model, tmp_path / "xcit.pth")
    assert all((p == 0.5).all() for p in model.parameters())
    del published["backbone.fpn2.0.weight"]
    torch.save({"state_dict": published}, tmp_path / "half.pth")
    with pytest.raises(UserError, match=r"half.pth: neck.upsample_2x.0.weight is missing"):
        load_weights(model, tmp_path / "half.pth")


def test_a_frozen_cae_may_leave_its_arguments_to_their_defaults():
    model = {"backbone": {"type": "CAE"}, "decode_head": {"type": "UPerHead"}}
    composed = compose_model(model, frozen=True)
    assert composed["backbone"]["backbone"]["out_indices"] == (3, 5, 7, 11)
    assert composed["neck"]["embed_dim"] == 768

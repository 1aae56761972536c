"""Learning rate and weight decay of every parameter, and the groups they form."""

import pytest
import torch
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from torch import nn

from cae_seg.models.backbones.cae import CAE
from cae_seg.models.layer_decay import layer_id


class Segmentor(nn.Module):
    """A backbone and a head, as far as the optimiser sees them."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = CAE(
            img_size=32, embed_dim=16, depth=2, num_heads=2, out_indices=[0, 0, 1, 1]
        )
        self.decode_head = nn.Conv2d(16, 3, 1)


def build(paramwise: dict | None, **optimizer):
    init_default_scope("mmseg")
    return build_optim_wrapper(
        Segmentor(),
        {
            "type": "OptimWrapper",
            "optimizer": {"type": "AdamW", "lr": 1e-3, "weight_decay": 0.05, **optimizer},
            "constructor": "CAELayerDecay",
            "paramwise_cfg": paramwise,
        },
    )


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("backbone.cls_token", 0),
        ("backbone.patch_embed.proj.bias", 0),
        ("backbone.blocks.0.gamma_1", 1),
        ("backbone.blocks.11.attn.relative_position_bias_table", 12),
        ("backbone.fpn1.0.weight", 13),
        ("decode_head.conv_seg.weight", 13),
        ("auxiliary_head.convs.0.conv.weight", 13),
    ],
)
def test_layers_count_from_the_embeddings_to_the_heads(name, layer):
    assert layer_id(name, layers=12) == layer


def test_groups_are_few_and_hold_each_trained_parameter_once():
    wrapper = build({"layer_decay_rate": 0.5})
    groups = wrapper.optimizer.param_groups
    names = [name for group in groups for name in group["param_names"]]
    trained = [name for name, p in Segmentor().named_parameters() if p.requires_grad]
    assert len(groups) == 2 * 4
    assert sorted(names) == sorted(trained)
    assert "backbone.pos_embed" not in names
    rates = {group["group_name"]: group["lr"] for group in groups}
    assert rates["layer_0_decay"] == pytest.approx(1e-3 / 8, rel=1e-12)
    assert rates["layer_3_no_decay"] == pytest.approx(1e-3, rel=1e-12)


def test_published_number_of_layers_is_accepted():
    own = build({"layer_decay_rate": 0.5}).optimizer.param_groups
    given = build({"layer_decay_rate": 0.5, "num_layers": 2}).optimizer.param_groups
    assert [g["lr"] for g in own] == [g["lr"] for g in given]
    assert [g["param_names"] for g in own] == [g["param_names"] for g in given]


def test_class_token_and_tables_are_decayed_as_published():
    groups = build({"layer_decay_rate": 0.5}).optimizer.param_groups
    decay = {name: group["weight_decay"] for group in groups for name in group["param_names"]}
    assert decay["backbone.cls_token"] == 0.05
    assert decay["backbone.blocks.0.attn.relative_position_bias_table"] == 0.05
    assert decay["backbone.blocks.0.norm1.weight"] == 0
    assert decay["decode_head.bias"] == 0


def test_a_step_moves_every_group():
    wrapper = build({"layer_decay_rate": 0.9})
    parameters = [p for group in wrapper.optimizer.param_groups for p in group["params"]]
    before = [p.detach().clone() for p in parameters]
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    wrapper.step()
    assert all(not torch.equal(p, old) for p, old in zip(parameters, before, strict=True))


@pytest.mark.parametrize(
    ("paramwise", "output"),
    [
        ({"layer_decay_rate": 0.5, "layers": 12}, "layers"),
        ({"decay_rate": 0.5}, "decay_rate"),
        (None, "layer_decay_rate"),
        ({"layer_decay_rate": 0}, "0 is not in"),
        ({"layer_decay_rate": 1.5}, "1.5 is not in"),
    ],
)
def test_keys_that_would_be_ignored_are_refused(paramwise, output):
    with pytest.raises(ValueError, match=output):
        build(paramwise)

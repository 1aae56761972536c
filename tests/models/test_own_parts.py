"""A backbone and a head of one's own, from the pages about them: layers and a training step."""

import re
import sys
from pathlib import Path

import pytest
import torch
from mmengine.optim import build_optim_wrapper
from segmentors import samples

from cae_seg.engine.build import build_model
from cae_seg.engine.config import load_config

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"```python\n# (\S+)\n(.*?)```", re.DOTALL)


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    """Write the pages' files into a folder that modules are imported from."""
    folder = tmp_path_factory.mktemp("own")
    pages = [(ROOT / "docs" / name).read_text() for name in ("own_backbone.md", "own_head.md")]
    for name, text in BLOCK.findall("\n".join(pages)):
        (folder / name).write_text(text.replace('"configs_local/', f'"{ROOT}/configs_local/'))
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))


@pytest.mark.parametrize(
    ("name", "low", "middle", "high"),
    [
        ("stripes.py", "stem.weight", "stages.0.weight", "stages.2.weight"),
        (
            "onelayer.py",
            "patch_embed.proj.weight",
            "blocks.0.attn.proj.weight",
            "blocks.3.attn.proj.weight",
        ),
    ],
)
def test_example_builds_trains_and_has_layers(examples, name, low, middle, high):
    config = load_config(examples / name)
    model = build_model(config, 0, start=True).train()
    wrapper = build_optim_wrapper(model, config.optim_wrapper)
    rates = {n: g["lr"] for g in wrapper.optimizer.param_groups for n in g["param_names"]}
    assert rates[f"backbone.{low}"] < rates[f"backbone.{middle}"] < rates[f"backbone.{high}"]
    assert rates[f"backbone.{high}"] < rates["decode_head.conv_seg.weight"]
    first = model.get_parameter(f"backbone.{low}")
    labels = torch.randint(0, 150, (2, 1, 96, 96))
    losses = model.loss(torch.randn(2, 3, 96, 96), samples(labels))
    before = first.detach().clone()
    wrapper.update_params(sum(v for k, v in losses.items() if "loss" in k))
    assert not torch.equal(before, first)

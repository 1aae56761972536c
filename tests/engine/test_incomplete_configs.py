"""Configs that lack a part, or have another kind of value in its place, are refused in one line."""

from pathlib import Path

import pytest
import torch

from cae_seg.engine.job import EvaluateJob
from cae_seg.errors import UserError
from cae_seg.launch.launcher import launch_evaluate, launch_train

INCOMPLETE = {
    "model = None": "model: is of another kind",
    "model = [1]": "model: is of another kind",
    "model = dict(backbone=None)": "the model cannot be built",
    "model = dict(backbone=dict(_delete_=True))": "the model cannot be built",
    "model = dict(decode_head=None)": "the model cannot be built",
    "train_dataloader = None": "train_dataloader: is missing",
    "train_dataloader = dict(dataset=None)": r"train_dataloader\.dataset: is missing",
    "val_dataloader = 5": "val_dataloader: is no mapping",
    "train_dataloader = dict(dataset=dict(pipeline=[]))": "pipeline: is empty",
    "default_hooks = 5": "default_hooks: is of another kind",
    "param_scheduler = 5": "param_scheduler: is of another kind",
    "optim_wrapper = None": "optim_wrapper: is missing",
    "train_cfg = None": "train_cfg: is missing|has no train_cfg",
}


@pytest.mark.parametrize("text", INCOMPLETE)
def test_a_config_without_a_part_is_one_line(text, make_job, config, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(f"_base_ = {str(config)!r}\n{text}\n")
    job = make_job(config=path, iterations=1)
    with pytest.raises(UserError, match=rf"mine\.py.*({INCOMPLETE[text]})") as caught:
        launch_train(job)
    assert "\n" not in str(caught.value)
    assert not job.out.exists()


@pytest.mark.parametrize("name", ["x", "", ".", "a b.c", "backbone", "decode_head.x"])
def test_a_tensor_of_any_name_in_weights_is_one_line(name, config, manifest, tmp_path):
    torch.save({"state_dict": {name: torch.zeros(2)}}, tmp_path / "w.pth")
    job = EvaluateJob(config=config, weights=Path(tmp_path / "w.pth"), data=manifest, device="cpu")
    with pytest.raises(UserError, match=r"w\.pth: ") as caught:
        launch_evaluate(job)
    assert "\n" not in str(caught.value)

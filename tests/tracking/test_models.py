"""The data set and the weights of a run in MLflow."""

import json

import numpy as np
import torch
import tracked
from fake_runs import make_run
from tiny_runs import TINY

import cae_seg
from cae_seg.engine.build import build_model
from cae_seg.engine.config import load_config
from cae_seg.engine.config_text import config_text
from cae_seg.tracking import track


def test_the_model_of_a_run_opens_from_its_address_and_its_data_is_an_input(
    tmp_path, store, monkeypatch
):
    run = make_run(tmp_path / "results" / "row" / "seed_0")
    (tmp_path / "tiny.py").write_text(TINY)
    settings = load_config(tmp_path / "tiny.py", {})
    state = build_model(settings, 0, start=True).state_dict()
    contents = {"meta": {"cfg": config_text(settings)}, "state_dict": state}
    torch.save(contents, run / "work" / "weights.pth")
    run_id = track(run, uri=store)["run_id"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    image = np.random.default_rng(0).integers(0, 255, (32, 48, 3), dtype=np.uint8)
    expected = cae_seg.load(run, device="cpu").predict(image)
    found = cae_seg.load(f"runs:/{run_id}/model", device="cpu").predict(image)
    assert (found == expected).all()
    (data,) = tracked.only_run(store).inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.digest) == ("ADEChallengeData2016", "d" * 36)
    assert json.loads(data.dataset.profile)["images"] == {"training": 20210, "validation": 2000}

"""The Python API and exports, of a model that was not trained."""

import numpy as np
import pytest
import torch
from PIL import Image

import cae_seg
from cae_seg.cli import main
from cae_seg.engine.build import build_model
from cae_seg.engine.config import load_config
from cae_seg.engine.config_text import config_text
from cae_seg.engine.predict import predict
from cae_seg.errors import UserError


@pytest.fixture(scope="module")
def weights(config, tmp_path_factory):
    settings = load_config(config, {})
    model = build_model(settings, 0, start=True)
    contents = {"meta": {"cfg": config_text(settings)}, "state_dict": model.state_dict()}
    path = tmp_path_factory.mktemp("run") / "work" / "weights.pth"
    path.parent.mkdir()
    torch.save(contents, path)
    return path


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    pixels = np.random.default_rng(3).integers(0, 255, (40, 70, 3), dtype=np.uint8)
    path = tmp_path_factory.mktemp("pictures") / "a.png"
    Image.fromarray(pixels).save(path)
    return path


def test_a_model_is_loaded_from_a_file_or_a_runs_folder_and_predicts(weights, picture, tmp_path):
    label, _ = predict(weights, [picture], tmp_path, device="cpu")
    expected = np.asarray(Image.open(label)) - 1
    model = cae_seg.load(weights.parent.parent, device="cpu")
    assert len(model.classes) == 150
    with Image.open(picture) as opened:
        for image in (picture, str(picture), opened, np.asarray(opened.convert("RGB"))):
            assert (model.predict(image) == expected).all()
    several = model.predict([picture, np.zeros((32, 48, 3), np.uint8)])
    assert [labels.shape for labels in several] == [(40, 70), (32, 48)]
    assert (several[0] == expected).all()


def test_what_is_no_image_and_what_are_no_weights_is_refused(weights, tmp_path):
    model = cae_seg.load(weights, device="cpu")
    with pytest.raises(UserError, match=r"is \(4, 4\) uint8; pass an RGB array"):
        model.predict(np.zeros((4, 4), np.uint8))
    with pytest.raises(UserError, match=r"contains no weights\.pth"):
        cae_seg.load(tmp_path)


def test_onnx_gives_the_logits_of_torch(weights, tmp_path, capsys):
    onnxruntime = pytest.importorskip("onnxruntime")
    out = tmp_path / "model.onnx"
    assert main(["export", str(weights), "--out", str(out)]) == 0
    assert "logits within" in capsys.readouterr().out
    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    images = np.random.default_rng(0).uniform(0, 255, (3, 3, 32, 32)).astype(np.float32)
    (logits,) = session.run(None, {"images": images})
    model = cae_seg.load(weights, device="cpu").model
    mean, std = (getattr(model.data_preprocessor, name).numpy() for name in ("mean", "std"))
    with torch.inference_mode():
        inputs = torch.from_numpy((images - mean.reshape(3, 1, 1)) / std.reshape(3, 1, 1))
        small = model.decode_head(model.extract_feat(inputs))
        expected = torch.nn.functional.interpolate(small, (32, 32), mode="bilinear").numpy()
    assert logits.shape == (3, 150, 32, 32)
    np.testing.assert_allclose(logits, expected, atol=1e-4 * np.abs(expected).max())


def test_an_export_opens_in_plain_mmsegmentation(weights, picture, tmp_path):
    from mmseg.apis import inference_model, init_model
    from mmseg.models import EncoderDecoder

    assert main(["export", str(weights), "--format", "mmseg", "--out", str(tmp_path / "m")]) == 0
    model = init_model(str(tmp_path / "m/config.py"), str(tmp_path / "m/model.pth"), device="cpu")
    assert type(model) is EncoderDecoder
    labels = inference_model(model, str(picture)).pred_sem_seg.data[0].numpy()
    own = cae_seg.load(weights, device="cpu").predict(picture)
    assert (labels == own).mean() > 0.999  # equal but where two logits are equal to float32
    assert len(model.dataset_meta["classes"]) == 150

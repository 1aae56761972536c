"""`predict`, paintings of `evaluate`: weights run no code, nothing of the user's is overwritten."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from mmseg.utils import ade_palette
from PIL import Image

from cae_seg.cli import main
from cae_seg.engine.build import build_model
from cae_seg.engine.config import load_config
from cae_seg.engine.config_text import config_text
from cae_seg.engine.job import EvaluateJob
from cae_seg.engine.predict import predict
from cae_seg.errors import UserError
from cae_seg.launch.launcher import launch_evaluate


@pytest.fixture(scope="module")
def contents(config) -> dict:
    """What a training stores as weights, of a model that was not trained."""
    settings = load_config(config, {})
    model = build_model(settings, 0, start=False)
    return {"meta": {"cfg": config_text(settings)}, "state_dict": model.state_dict()}


@pytest.fixture(scope="module")
def weights(contents, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "weights.pth"
    torch.save(contents, path)
    return path


@pytest.fixture
def images(tmp_path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    draw(folder / "a.jpg")
    return folder


def draw(path: Path, size: tuple[int, int] = (64, 40), **options) -> None:
    pixels = np.arange(size[0] * size[1] * 3).reshape(size[1], size[0], 3) * 7 % 256
    Image.fromarray(pixels.astype(np.uint8)).save(path, **options)


def with_config(contents: dict, path: Path, text: str) -> Path:
    torch.save({**contents, "meta": {"cfg": text}}, path)
    return path


CODE = {
    "call": "import os\nos.system('touch PWNED')\n",
    "open": "x = open('PWNED', 'w')\n",
    "custom import": "custom_imports = dict(imports=['evil'])\n",
    "condition": "x = 1 if open('PWNED', 'w') else 2\n",
    "dict with code": "x = dict(a=open('PWNED', 'w'))\n",
    "base": "_base_ = './evil.py'\n",
}
TYPES = {
    "command": ("type='CAE'", "type='os.system', command='touch PWNED'"),
    "module": ("type='CAE'", "type='evil.Net'"),
    "module without attribute": ("type='CAE'", "type='evil'"),
    "scope": ("type='CAE'", "_scope_='evil', type='CAE'"),
    "transform": ("type='PackSegInputs'", "type='os.system', command='touch PWNED'"),
}


def sabotaged(text: str, old: str, new: str) -> str:
    """Replace an item of the config's text, whichever way it writes dictionaries."""
    key, value = old.split("=")
    for found, put in ((old, new), (f"'{key}': {value}", as_items(new))):
        if found in text:
            return text.replace(found, put)
    raise AssertionError(f"{old} is not in the config")


def as_items(text: str) -> str:
    pairs = (item.split("=", 1) for item in text.split(", "))
    return ", ".join(f"'{key}': {value}" for key, value in pairs)


@pytest.mark.parametrize("kind", [*CODE, *TYPES])
def test_nothing_in_weights_is_run(kind, contents, images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path("evil.py").write_text("open('PWNED', 'w')\n")
    text = contents["meta"]["cfg"]
    text = text + CODE[kind] if kind in CODE else sabotaged(text, *TYPES[kind])
    path = with_config(contents, tmp_path / "weights.pth", text)
    if kind in ("custom import", "base"):  # data that nothing reads
        assert predict(path, [images], tmp_path / "out", device="cpu")
    else:
        with pytest.raises(UserError, match=r"the config inside .* --config"):
            predict(path, [images], tmp_path / "out", device="cpu")
    assert not Path("PWNED").exists()


@pytest.mark.parametrize("text", ["", "model = {}", "model = [1]", "(" * 10_000, "x = 1\n" * 10**6])
def test_a_broken_config_in_weights_is_one_line(text, contents, images, tmp_path):
    path = with_config(contents, tmp_path / "weights.pth", text)
    with pytest.raises(UserError, match=r"weights\.pth: the config inside .* --config") as caught:
        predict(path, [images], tmp_path / "out", device="cpu")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_config_as_mmengine_writes_it_is_accepted(contents, config, images, tmp_path):
    text = load_config(config, {}).pretty_text
    assert "dict(" in text
    path = with_config(contents, tmp_path / "weights.pth", text)
    assert predict(path, [images], tmp_path / "out", device="cpu")


def test_weights_named_by_the_config_are_not_read(contents, images, tmp_path):
    text = contents["meta"]["cfg"].replace(
        "'type': 'CAE'", "'type': 'CAE', 'init_cfg': {'type': 'Pretrained', 'checkpoint': '/x'}"
    )
    path = with_config(contents, tmp_path / "weights.pth", text)
    assert predict(path, [images], tmp_path / "out", device="cpu")


def test_pictures_by_choice_of_several_inputs_at_once(weights, images, tmp_path):
    draw(images / "b.png", (50, 70))
    draw(tmp_path / "c.jpg", (30, 30))
    inputs, out = [images, tmp_path / "c.jpg"], tmp_path / "out"
    command = ["predict", weights, *inputs, "--out", out, "--write", "labels,colors,overlay"]
    assert main([str(part) for part in [*command, "--batch-size", "2", "--device", "cpu"]]) == 0
    ends = ("", "_colors", "_overlay")
    assert {path.name for path in out.iterdir()} == {
        f"{stem}{end}.png" for stem in "abc" for end in ends
    }
    for stem, image in {"a": images / "a.jpg", "b": images / "b.png"}.items():
        labels, colors, overlay = (np.asarray(Image.open(out / f"{stem}{end}.png")) for end in ends)
        assert (colors == np.array(ade_palette(), np.uint8)[labels - 1]).all()
        mean = np.rint((np.asarray(Image.open(image), float) + colors) / 2)
        assert (overlay == mean).all()
        alone, *_ = predict(weights, [image], tmp_path / f"alone_{stem}", device="cpu")
        assert (np.asarray(Image.open(alone)) == labels).all()


def test_an_image_given_as_a_file_and_by_its_folder_is_segmented_once(
    weights, images, tmp_path, capfd
):
    inputs = [images / "a.jpg", images, images / ".." / images.name / "a.jpg"]
    written = predict(weights, inputs, tmp_path / "out", device="cpu")
    assert [path.name for path in written] == ["a.png", "a_panel.png"]
    assert "1/1 images" in capfd.readouterr().err


def test_label_maps_have_the_classes_and_values_of_the_data(contents, images, tmp_path):
    text = contents["meta"]["cfg"].replace(
        "'reduce_zero_label': True", "'reduce_zero_label': False"
    )
    text = text.replace(
        "'type': 'ADE20KDataset'",
        "'type': 'BaseSegDataset', 'metainfo': {'classes': "
        f"{[f'class {n}' for n in range(150)]}, 'palette': {[[n, 0, 9] for n in range(150)]}}}",
    )
    assert "BaseSegDataset" in text
    path = with_config(contents, tmp_path / "weights.pth", text)
    labels, colors = predict(
        path, [images], tmp_path / "out", pictures=["labels", "colors"], device="cpu"
    )
    usual, _ = predict(
        with_config(contents, tmp_path / "usual.pth", contents["meta"]["cfg"]),
        [images],
        tmp_path / "usual",
        device="cpu",
    )
    assert (np.asarray(Image.open(labels)) == np.asarray(Image.open(usual)) - 1).all()
    red = np.asarray(Image.open(colors))
    assert (red[..., 0] == np.asarray(Image.open(labels))).all()
    assert (red[..., 2] == 9).all()


def test_a_picture_that_there_is_not_is_refused(weights, images, capsys):
    assert main(["predict", str(weights), str(images), "--write", "labels,heatmap"]) == 2
    assert "'heatmap' is none of labels, colors, overlay, panel" in capsys.readouterr().err


def test_predict_does_not_write_into_the_folder_of_the_images(weights, images):
    before = (images / "a.jpg").read_bytes()
    with pytest.raises(UserError, match="contains the input images"):
        predict(weights, [images], images, device="cpu")
    with pytest.raises(UserError, match="contains the input images"):
        predict(weights, [images / "a.jpg"], images / ".." / "images", device="cpu")
    assert os.listdir(images) == ["a.jpg"]
    assert (images / "a.jpg").read_bytes() == before


@pytest.mark.parametrize("other", ["a.png", "a.JPG", "a_panel.jpg"])
def test_images_that_would_share_an_output_are_refused(other, weights, images, tmp_path):
    draw(images / other, format="PNG")
    with pytest.raises(UserError, match="rename one"):
        predict(weights, [images], tmp_path / "out", device="cpu")
    assert not (tmp_path / "out").exists()


def test_only_earlier_predictions_are_overwritten(weights, images, tmp_path):
    out = tmp_path / "out"
    first = predict(weights, [images], out, device="cpu")
    assert predict(weights, [images], out, device="cpu") == first
    draw(out / "a_panel.png")
    before = (out / "a_panel.png").read_bytes()
    with pytest.raises(UserError, match=r"a_panel\.png: exists and was not written by"):
        predict(weights, [images], out, device="cpu")
    assert (out / "a_panel.png").read_bytes() == before


def test_evaluation_does_not_paint_over_pictures_of_the_users(undisturbed, tmp_path):
    """The annotations have the names of the images, and of the paintings."""
    job = EvaluateJob(
        config=undisturbed.config,
        weights=undisturbed.work_dir / "weights.pth",
        data=undisturbed.data,
        device="cpu",
        show_dir=tmp_path / "annotations",
    )
    launch_evaluate(job)
    assert launch_evaluate(job) == 0
    draw(job.show_dir / "validation_3.png")
    before = {path: path.read_bytes() for path in job.show_dir.iterdir()}
    with pytest.raises(UserError, match=r"validation_3\.png: exists and was not written by"):
        launch_evaluate(job)
    assert {path: path.read_bytes() for path in job.show_dir.iterdir()} == before


@pytest.mark.parametrize("kind", ["file", "below a file", "folder in the way"])
def test_an_unusable_output_is_refused_before_the_weights_are_read(kind, images, tmp_path):
    unread = tmp_path / "weights.pth"
    unread.write_text("no weights")
    out = tmp_path / "out"
    if kind == "folder in the way":
        (out / "a.png").mkdir(parents=True)
    else:
        out.write_text("mine")
    with pytest.raises(UserError, match="out"):
        predict(unread, [images], out / "x" if kind == "below a file" else out, device="cpu")
    assert kind == "folder in the way" or out.read_text() == "mine"


def test_the_exif_orientation_is_applied(weights, images, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by 90 degrees
    draw(images / "a.jpg", (64, 40), exif=exif)
    label, _ = predict(weights, [images], tmp_path / "out", device="cpu")
    assert Image.open(label).size == (40, 64)


@pytest.mark.parametrize("size", [(1, 1), (1, 60)])
def test_extreme_shapes_are_predicted(size, weights, images, tmp_path):
    draw(images / "a.jpg", size)
    label, _ = predict(weights, [images], tmp_path / "out", device="cpu")
    assert Image.open(label).size == size


def test_an_image_that_shrinks_to_nothing_is_refused_in_one_line(weights, images, tmp_path):
    draw(images / "a.jpg", (3000, 1))
    with pytest.raises(UserError, match=r"a\.jpg: 3000×1 cannot be resized; crop it"):
        predict(weights, [images], tmp_path / "out", device="cpu")


def test_a_pipe_among_the_images_is_refused(weights, images, tmp_path):
    os.mkfifo(images / "b.png")
    with pytest.raises(UserError, match=r"b\.png: not a regular file"):
        predict(weights, [images], tmp_path / "out", device="cpu")


def test_an_image_with_too_many_pixels_is_refused(weights, images, tmp_path):
    Image.new("1", (11_000, 11_000)).save(images / "a.jpg", format="PNG")
    with pytest.raises(UserError, match=r"a\.jpg: 11000×11000 is more than 89 megapixels"):
        predict(weights, [images], tmp_path / "out", device="cpu")

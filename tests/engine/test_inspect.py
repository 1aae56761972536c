"""A checkpoint is looked into before a GPU is asked for, and named by its report afterwards."""

import http.server
import json
import re
import threading

import pytest
import torch

from cae_seg.engine.build import build_backbone
from cae_seg.engine.checkpoint_report import inspect_checkpoint, known_sha256
from cae_seg.engine.config import load_config
from cae_seg.errors import UserError
from cae_seg.files import sha256_file
from cae_seg.launch.launcher import launch_train


@pytest.fixture(scope="session")
def checkpoint(config, tmp_path_factory):
    """A checkpoint in the released layout that fits the tiny backbone."""
    state = build_backbone(load_config(config, {})).state_dict()
    kept = {name: value for name, value in state.items() if not name.startswith("fpn")}
    kept = {name: value for name, value in kept.items() if "relative_position" not in name}
    path = tmp_path_factory.mktemp("checkpoint") / "cae.pth"
    torch.save({"model": {f"encoder.{name}": value for name, value in kept.items()}}, path)
    return path


def test_report_says_what_is_taken(checkpoint, config, tmp_path):
    report = inspect_checkpoint(str(checkpoint), config, tmp_path / "checkpoint.json")
    assert report == json.loads((tmp_path / "checkpoint.json").read_text())
    assert report["layout"] == "CAE"
    assert report["sha256"] == sha256_file(checkpoint)
    assert report["loaded"] > 50
    assert "fpn1" in report["summary"]


@pytest.mark.parametrize(
    ("overrides", "removed", "expected"),
    [
        ({}, (), None),
        ({"model.backbone.init_values": 0.1}, ("gamma",), "layer scale starts at 0.1"),
        ({"model.backbone.init_values": 1.0}, ("gamma",), None),
        ({"model.data_preprocessor.mean": [127.5] * 3}, (), r"the mean \(127.5, 127.5, 127.5\)"),
    ],
    ids=["none", "layer scale", "layer scale of one", "normalisation"],
)
def test_mismatches_are_reported_as_warnings(
    overrides, removed, expected, checkpoint, config, tmp_path
):
    state = torch.load(checkpoint)["model"]
    kept = {name: value for name, value in state.items() if not any(r in name for r in removed)}
    torch.save({"model": kept}, tmp_path / "c.pth")
    report = inspect_checkpoint(
        str(tmp_path / "c.pth"), config, tmp_path / "report.json", cfg_options=overrides
    )
    warnings = report["warnings"]
    assert len(warnings) == (expected is not None)
    if expected is not None:
        assert re.search(expected, warnings[0])
        assert f"warning: {warnings[0]}" in report["summary"]


def test_a_much_larger_grid_is_reported(config, checkpoint, tmp_path):
    state = torch.load(checkpoint)["model"]
    width = state["encoder.pos_embed"].shape[2]
    state["encoder.pos_embed"] = torch.zeros(1, 1 + 40 * 40, width)
    torch.save({"model": state}, tmp_path / "c.pth")
    report = inspect_checkpoint(str(tmp_path / "c.pth"), config, tmp_path / "report.json")
    assert "compare img_size and patch_size" in report["summary"]


def test_report_stands_for_the_checkpoint(checkpoint, config, make_job, tmp_path):
    report = tmp_path / "checkpoint.json"
    inspect_checkpoint(str(checkpoint), config, report)
    job = make_job(pretrained=report, iterations=1)
    assert launch_train(job) == 0
    noted = json.loads(job.out.read_text())["checkpoint"]
    assert noted["path"] == str(checkpoint)
    assert noted["sha256"] == sha256_file(checkpoint)
    assert noted["layout"] == "CAE"


def test_changed_checkpoint_is_noticed(checkpoint, config, tmp_path):
    copy = tmp_path / "copy.pth"
    copy.write_bytes(checkpoint.read_bytes())
    inspect_checkpoint(str(copy), config, tmp_path / "checkpoint.json")
    assert known_sha256(tmp_path / "checkpoint.json") == (copy, sha256_file(checkpoint))
    copy.write_bytes(checkpoint.read_bytes() + b" ")
    with pytest.raises(UserError, match="changed since"):
        known_sha256(tmp_path / "checkpoint.json")


def test_other_file_than_expected(checkpoint, config, tmp_path):
    with pytest.raises(UserError, match="expected 0000"):
        inspect_checkpoint(str(checkpoint), config, tmp_path / "c.json", sha256="0" * 64)
    assert not (tmp_path / "c.json").exists()


def test_url_is_downloaded_once(checkpoint, config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(checkpoint.parent))

        def do_GET(self):
            asked.append(self.path)
            super().do_GET()

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/cae.pth"
        reports = [inspect_checkpoint(url, config, tmp_path / f"{n}.json") for n in range(2)]
        server.shutdown()
    assert asked == ["/cae.pth"]
    assert reports[0] == reports[1]
    assert reports[0]["sha256"] == sha256_file(checkpoint)
    assert reports[0]["path"].startswith("checkpoints/")

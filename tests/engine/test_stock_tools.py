"""Our configs are plain mmsegmentation configs: its own tools train and test them."""

import json
import re
import subprocess
import sys
from pathlib import Path

import mmseg
import pytest

from cae_seg.data.prepare.manifest import load_manifest
from cae_seg.engine.job import DONE, EvaluateJob
from cae_seg.launch.launcher import launch_evaluate

pytestmark = pytest.mark.slow

TOOLS = Path(mmseg.__file__).parent / ".mim" / "tools"


def stock(tool: str, *arguments: object) -> str:
    """Run a tool of mmsegmentation's; return what it printed."""
    command = [sys.executable, str(TOOLS / tool), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout + done.stderr


def test_stock_tools_train_and_test_and_ours_agrees(config, manifest, tmp_path):
    root = load_manifest(manifest).root
    data = [f"{name}_dataloader.dataset.data_root={root}" for name in ("train", "val", "test")]
    options = ["--cfg-options", *data]
    short = ["train_cfg.max_iters=12", "default_hooks.checkpoint.interval=12"]
    work = tmp_path / "stock"
    stock("train.py", config, "--work-dir", work, *options, *short, "train_cfg.val_interval=12")
    weights = work / "iter_12.pth"
    output = stock("test.py", config, weights, "--work-dir", tmp_path / "test", *options)
    theirs = float(re.findall(r"mIoU: ([\d.]+)", output)[-1])
    job = EvaluateJob(
        config=config, weights=weights, data=manifest, device="cpu", out=tmp_path / "ours.json"
    )
    assert launch_evaluate(job) == DONE
    ours = json.loads(job.out.read_text())["mIoU"]
    assert theirs > 0
    assert round(ours, 2) == pytest.approx(theirs, abs=0.005)

"""The worked example of docs/own_data.md, run as it is written."""

import json
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest
from checkouts import ROOT, Checkout
from data_sets import make_folder
from PIL import Image

PAGE = (ROOT / "docs/own_data.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.slow
def test_the_example_of_the_page_runs(tmp_path):
    copy = Checkout(tmp_path, stub=False)
    leaves = make_folder(tmp_path / "leaves", [0, 1, 2, 255])
    (leaves / "classes.json").write_text(blocks("json")[0])
    (tmp_path / "config/leaves.yaml").write_text(blocks("yaml")[0])
    prepare, run, predict = (shlex.split(block) for block in blocks("bash"))

    def call(command: list[str]) -> subprocess.CompletedProcess:
        module = {"cae-seg": "cae_seg.cli", "snakemake": "snakemake"}[command[0]]
        return subprocess.run(
            [sys.executable, "-m", module, *command[1:]],
            cwd=tmp_path,
            env=copy.environment(),
            capture_output=True,
            text=True,
        )

    asked = call(prepare)
    assert asked.returncode == 2
    answer = re.search(r"```\n(leaves: .*?)```", PAGE, re.DOTALL)[1]
    assert " ".join(answer.split()) in " ".join(asked.stderr.split())
    done = call(run)
    assert done.returncode == 0, done.stdout + done.stderr
    metrics = json.loads((tmp_path / "results/leaves/leaves_tiny/seed_0/metrics.json").read_text())
    assert [part["name"] for part in metrics["per_class"]] == ["stem", "leaf", "flower"]
    table = (tmp_path / "results/leaves/table.md").read_text()
    assert "class_weights" in table
    assert call(predict).returncode == 0
    assert set(np.unique(np.asarray(Image.open(tmp_path / "predictions/0.png")))) <= {0, 1, 2}

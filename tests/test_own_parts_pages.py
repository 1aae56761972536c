"""The worked examples of docs/own_backbone.md and docs/own_head.md, run as they are written."""

import os
import re
import shlex
import subprocess
import sys

import pytest
from checkouts import ROOT, Checkout

BLOCK = re.compile(r"```python\n# (\S+)\n(.*?)```", re.DOTALL)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("page", "shown"),
    [
        ("own_backbone", ["Stripes-16", "[stripes]"]),
        ("own_head", ["ViT-tiny", "onelayer", "UperNet"]),
    ],
)
def test_the_example_of_the_page_runs(page, shown, tmp_path):
    text = (ROOT / "docs" / f"{page}.md").read_text()
    copy = Checkout(tmp_path, stub=False)
    for name, content in BLOCK.findall(text):
        (tmp_path / name).write_text(content)
    (sheet,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    (command,) = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    path, _, target, *rest = shlex.split(command)
    (tmp_path / rest[-1].removeprefix("sheet=")).write_text(sheet)
    environment = copy.environment()
    environment["PYTHONPATH"] += os.pathsep + path.removeprefix("PYTHONPATH=")
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", target, *rest],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    table = (tmp_path / target).read_text()
    assert [word for word in shown if word not in table] == []

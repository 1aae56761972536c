"""Commands of the docs, run as they stand after the demo; its sheet replaces larger ones."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]

DOCS = Path(__file__).parents[2] / "docs"
PAGES = ("results.md", "tracking.md", "api.md")
LARGER = re.compile(r"config/(published|sweep)\.yaml")
# Never ends; starts a server (test_tracking_page.py); installs; has a test of its own (the report).
ELSEWHERE = ("--watch", "mlflow server", "export MLFLOW", "pip install", "--report")


def commands() -> list[str]:
    blocks = [
        block
        for page in PAGES
        for block in re.findall(r"```bash\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)
    ]
    lines = (shlex.join(shlex.split(line, comments=True)) for line in "".join(blocks).splitlines())
    return sorted({line for line in lines if line and not any(word in line for word in ELSEWHERE)})


@pytest.mark.parametrize("command", commands())
def test_a_command_of_the_docs_works_after_the_demo(command, demo_run):
    words = [LARGER.sub("config/demo.yaml", word) for word in shlex.split(command)]
    if words[1] == "table" and "--sheet" not in words:  # the published sheet by default
        words += ["--sheet", "config/demo.yaml"]
    done = subprocess.run(
        words, cwd=demo_run.path, env=demo_run.environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]

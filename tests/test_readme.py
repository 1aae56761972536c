"""The README's commands are run, those that take days or a cluster as far as their plan."""

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ENVIRONMENT = {**os.environ, "HOME": "/nonexistent", "XDG_CONFIG_HOME": "/nonexistent"}


def commands() -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    lines = "\n".join(blocks).splitlines()
    return [line.split("#")[0].strip() for line in lines if line.strip()]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A copy of what git tracks, with the checkpoints that a person downloads by hand."""
    copy = tmp_path_factory.mktemp("checkout")
    tracked = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in filter(None, tracked.stdout.split("\0")):
        target = copy / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target, follow_symlinks=False)
    for name in re.findall(
        r"checkpoints/[\w.-]+\.pth", (copy / "config/published.yaml").read_text()
    ):
        (copy / "checkpoints").mkdir(exist_ok=True)
        (copy / name).touch()
    return copy


def planned(command: str) -> list[str]:
    """Return the arguments that show what `command` would do."""
    words = shlex.split(command)
    if words[0] == "make":
        return [*words, "--dry-run"]
    if words[0] == "snakemake" and "--dry-run" not in words:
        return [*words, "--dry-run"]
    if words[0] == "bash":
        return [*words, "--help"]
    return words


@pytest.mark.parametrize("command", commands())
def test_readme_command(command: str, checkout: Path) -> None:
    answer = subprocess.run(
        planned(command), cwd=checkout, env=ENVIRONMENT, capture_output=True, text=True
    )
    # The doctor tells by its status what this machine lacks, such as a SLURM that answers.
    good = (0, 1) if "doctor" in command else (0,)
    assert answer.returncode in good, answer.stdout[-2000:] + answer.stderr[-2000:]


def test_readme_names_files_that_exist() -> None:
    text = (ROOT / "README.md").read_text()
    links = re.findall(r"\]\((?!http)([^)#]+)\)", text)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []

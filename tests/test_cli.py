"""The console script as a person meets it."""

import subprocess
import sys

import pytest

COMMANDS = ["prepare", "train", "evaluate", "predict", "track", "table", "doctor"]


def run(*arguments: str, **kwargs) -> subprocess.CompletedProcess:
    return subprocess.run(["cae-seg", *arguments], capture_output=True, text=True, **kwargs)


def test_help_names_every_command_of_the_public_face() -> None:
    text = run("--help").stdout
    assert all(command in text for command in COMMANDS)


@pytest.mark.parametrize("command", [[c] for c in COMMANDS] + [["prepare", "data"]])
def test_each_command_has_help(command: list[str]) -> None:
    answer = run(*command, "--help")
    assert answer.returncode == 0
    assert "usage: cae-seg" in answer.stdout


def test_help_does_not_load_torch_or_anything_heavy() -> None:
    code = (
        "import sys, cae_seg.cli\n"
        "try: cae_seg.cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'mmengine', 'mmseg', 'mlflow', 'pandas', 'numpy', 'matplotlib'}\n"
        "sys.exit(bool(heavy & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_a_mistake_is_one_line_and_status_2(tmp_path) -> None:
    answer = run("prepare", "data", "--source", str(tmp_path / "absent.zip"), cwd=tmp_path)
    assert answer.returncode == 2
    assert len(answer.stderr.strip().splitlines()) == 1
    assert "absent.zip" in answer.stderr
    assert not (tmp_path / "data").exists() or not list((tmp_path / "data").rglob("*.json"))


def test_an_option_without_value_is_named() -> None:
    answer = run("train", "x.py", "--work-dir", "w", "--options", "model.pretrained")
    assert answer.returncode == 2
    assert "model.pretrained: write KEY=VALUE" in answer.stderr

"""`make install`: which Python it takes, what it prints without one, which PyTorch it installs."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from checkouts import OF_MAKE

ROOT = Path(__file__).parents[1]


@pytest.fixture
def bin_(tmp_path):
    """The only folder on the PATH, without a Python."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for command in ("bash", "env", "cat", "touch", "grep", "make", "test"):
        (folder / command).symlink_to(shutil.which(command))
    return folder


def put_python(folder: Path, name: str, refuses: str = "nothing") -> None:
    """Write a Python that fails where its code holds a text."""
    script = f'#!/bin/bash\n[[ "$2" == *"{refuses}"* ]] && exit 1\nexec {sys.executable} "$@"\n'
    (folder / name).write_text(script)
    (folder / name).chmod(0o755)


def find_python(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    command = [ROOT / "tools/find_python.sh", *arguments]
    return subprocess.run(command, env={"PATH": str(folder)}, capture_output=True, text=True)


def test_a_fitting_python_is_found_behind_an_unfitting_one(bin_):
    put_python(bin_, "python3.12", refuses="version_info")
    put_python(bin_, "python3")
    assert find_python(bin_).stdout.strip() == str(bin_ / "python3")


@pytest.mark.parametrize("arguments", [(), ("python3.12",)])
def test_without_a_fitting_python_three_ways_to_get_one_are_named(bin_, arguments):
    put_python(bin_, "python3", refuses="version_info")
    done = find_python(bin_, *arguments)
    assert done.returncode == 1
    assert "no Python 3.11, 3.12 or 3.13" in done.stderr
    for way in ("uv python install 3.11", "pyenv install 3.11", "conda create -n py311"):
        assert way in done.stderr


def test_a_python_without_ensurepip_names_the_debian_package(bin_):
    put_python(bin_, "python3", refuses="ensurepip")
    done = find_python(bin_)
    version = ".".join(map(str, sys.version_info[:2]))
    assert done.returncode == 1
    assert f"apt-get install python{version}-venv" in done.stderr


def installed(bin_, folder: Path, *arguments: str) -> list[str]:
    """Return what `make install` asks pip for, in a folder with the files that it reads."""
    for name in ("Makefile", "requirements.txt", "pyproject.toml"):
        shutil.copy2(ROOT / name, folder / name)
    environment = folder / ".venv/bin"
    environment.mkdir(parents=True)
    (environment / "python").write_text('#!/bin/bash\necho "$@" >> pip.txt\n')
    (environment / "python").chmod(0o755)
    command = ["make", "install", *arguments]
    inherited = {key: text for key, text in os.environ.items() if key not in OF_MAKE}
    subprocess.run(command, cwd=folder, env=inherited | {"PATH": str(bin_)}, check=True)
    return (folder / "pip.txt").read_text().splitlines()


def test_one_word_chooses_the_build_of_pytorch(bin_, tmp_path):
    first, second, third, fourth = installed(bin_, tmp_path, "TORCH=cpu")
    assert first.endswith(" uv")
    assert re.search(r"uv pip install .*--torch-backend=cpu torch==\S+ torchvision==\S+$", second)
    assert third.endswith("-r requirements.txt")
    assert fourth.endswith("--no-deps -e .")


def test_without_it_the_pins_are_installed_as_they_are(bin_, tmp_path):
    first, second = installed(bin_, tmp_path)
    assert first.endswith("-r requirements.txt")
    assert "torch-backend" not in first + second

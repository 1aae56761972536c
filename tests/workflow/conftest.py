"""Copies of the repository to run Snakemake in."""

import shutil
from pathlib import Path

import pytest
from checkouts import Checkout


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    """A fresh copy of the workflow, with the published checkpoints as empty files."""
    copy = Checkout(tmp_path)
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for name in ("base_300", "base_800", "base_1600", "large_1600"):
        (folder / f"cae_{name}ep.pth").touch()
    return copy


@pytest.fixture(scope="session")
def _finished_demo(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    copy = Checkout(tmp_path_factory.mktemp("finished"))
    copy.run("--profile", "demo")
    copy.age()
    return copy


@pytest.fixture
def finished(_finished_demo: Checkout, tmp_path: Path) -> Checkout:
    """A copy in which the demo workflow has been run to its end (by the stand-in)."""
    shutil.copytree(_finished_demo.path, tmp_path, symlinks=True, dirs_exist_ok=True)
    copy = Checkout.__new__(Checkout)
    copy.path = tmp_path
    return copy

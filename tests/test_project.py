"""The wheel, installed into an environment of its own, and a folder laid out from it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def bin_(tmp_path_factory) -> Path:
    """The commands of an environment with the built wheel and the packages installed here."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    (site,) = folder.glob("venv/lib/python*/site-packages")
    packages = [path for path in sys.path if path.endswith("site-packages")]
    (site / "packages.pth").write_text("\n".join(packages))
    install = [sys.executable, "-m", "pip", "--python", folder / "venv/bin/python", "install"]
    install += ["--no-deps", "--no-index", "--force-reinstall", "--quiet", wheel]
    subprocess.run(install, check=True)
    return folder / "venv/bin"


@pytest.fixture(scope="module")
def run(bin_, tmp_path_factory):
    """Run a command of the environment in a folder outside of the clone; return its output."""
    home = tmp_path_factory.mktemp("work")

    def run(*command: str, folder: str = ".") -> str:
        environment = {"PATH": f"{bin_}:/usr/bin:/bin", "HOME": str(home)}
        done = subprocess.run(
            command, cwd=home / folder, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    return run


@pytest.fixture(scope="module")
def study(run) -> str:
    run("cae-seg", "init", "study")
    return "study"


def test_the_package_is_the_wheels_and_so_are_its_files(run, bin_):
    code = "import cae_seg.project as p; print(p.__file__, p.PROJECT)"
    for path in run("python", "-c", code).split():
        assert str(bin_.parent) in path


def test_the_demo_is_planned_in_a_folder_made_by_init(run, study):
    text = run("python", "-m", "snakemake", "--profile", "demo", "--dry-run", folder=study)
    assert re.search(r"^fine_tune +7$", text, re.MULTILINE)


def test_rules_run_in_a_folder_made_by_init(run, study):
    target = "data/demo/ade20k/manifest.json"
    text = run("python", "-m", "snakemake", "--profile", "demo", target, folder=study)
    assert "64 training, 24 validation images" in text


def test_init_refuses_to_overwrite(bin_, run, study, tmp_path):
    (tmp_path / "config").mkdir()
    done = subprocess.run([bin_ / "cae-seg", "init", tmp_path], capture_output=True, text=True)
    assert done.returncode == 2
    assert f"{tmp_path}: already holds config" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["config"]

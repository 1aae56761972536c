"""The set of pins: one source, installable from pip and from conda, within the supported range."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[1]


def pins() -> dict[str, str]:
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    found = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {normal(r.name): str(r.specifier).removeprefix("==") for r in found}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def declared() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = project["dependencies"] + project["optional-dependencies"]["test"]
    return [Requirement(line) for line in lines]


@pytest.mark.parametrize("requirement", declared(), ids=lambda r: r.name)
def test_every_dependency_is_pinned_within_its_range(requirement: Requirement) -> None:
    version = pins()[normal(requirement.name)]
    assert requirement.specifier.contains(version)


def test_every_pin_is_exact() -> None:
    assert all(re.fullmatch(r"[\w.+]+", version) for version in pins().values())


def test_conda_installs_the_same_pins() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    (pip,) = [item["pip"] for item in environment["dependencies"] if isinstance(item, dict)]
    conda = [item for item in environment["dependencies"] if isinstance(item, str)]
    assert pip == ["-r requirements.txt", "-e ."]
    assert conda == ["python=3.11", "pip"]


def test_the_pins_are_what_is_installed() -> None:
    from importlib.metadata import distributions

    installed = {normal(d.metadata["Name"]): d.version for d in distributions()}
    wrong = {name: (pin, installed.get(name)) for name, pin in pins().items()}
    wrong = {name: pair for name, pair in wrong.items() if pair[0] != pair[1]}
    assert not wrong


def test_every_pin_installs_on_the_oldest_python() -> None:
    """Distributions keep an early patch release for years: Debian 12 has Python 3.11.2."""
    from importlib.metadata import distribution

    ranges = {name: distribution(name).metadata["Requires-Python"] for name in pins()}
    wrong = {name: r for name, r in ranges.items() if r and "3.11.0" not in SpecifierSet(r)}
    assert not wrong


@pytest.mark.parametrize("recipe", ["Dockerfile", "cae-seg.def"])
def test_container_recipes_install_the_pins_and_then_the_package(recipe: str) -> None:
    text = (ROOT / "containers" / recipe).read_text()
    pins = text.index("pip install --no-cache-dir -r /opt/cae-seg/requirements.txt")
    package = text.index("pip install --no-cache-dir --no-deps /opt/cae-seg")
    assert pins < package
    assert "python:3.11-slim" in text


def test_what_the_dockerfile_copies_is_not_ignored() -> None:
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert not {"requirements.txt", "pyproject.toml", "README.md", "config", "workflow"} & {
        *ignored
    }

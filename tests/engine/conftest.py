"""Runs that train in seconds, shared by the tests of the engine."""

from pathlib import Path

import pytest
import torch
from gate import write_gated_config
from tiny_runs import TINY, draw_pictures, job_in

from cae_seg.data.prepare.prepare import prepare
from cae_seg.engine.job import DONE, TrainJob
from cae_seg.launch.launcher import launch_train

torch.set_num_threads(1)  # as the runs in processes of their own: another number rounds otherwise


@pytest.fixture(scope="session")
def manifest(tmp_path_factory) -> Path:
    """The manifest of the small pictures."""
    source = tmp_path_factory.mktemp("source") / "ADEChallengeData2016"
    draw_pictures(source)
    root = tmp_path_factory.mktemp("data")
    prepare(str(source), root, root / "manifest.json")
    return root / "manifest.json"


@pytest.fixture(scope="session")
def config(tmp_path_factory) -> Path:
    """A config that trains an iteration in a fraction of a second."""
    path = tmp_path_factory.mktemp("config") / "tiny.py"
    path.write_text(TINY)
    return path


@pytest.fixture
def make_job(config, manifest, tmp_path):
    """Make a training job in a folder of the test's."""

    def make(name: str = "run", iterations: int = 8, **changes) -> TrainJob:
        chosen = changes.pop("config", config)
        return job_in(tmp_path / name, chosen, manifest, iterations, **changes)

    return make


@pytest.fixture(scope="session")
def undisturbed(config, manifest, tmp_path_factory) -> TrainJob:
    """A run that nothing happened to; tests only look at it."""
    job = job_in(tmp_path_factory.mktemp("undisturbed"), config, manifest)
    assert launch_train(job) == DONE
    return job


@pytest.fixture(scope="session")
def gated(tmp_path_factory, config) -> Path:
    """The config that trains in a moment, with a gate."""
    folder = tmp_path_factory.mktemp("gated")
    return folder / write_gated_config(folder, str(config))

"""One cluster for all tests here, and one prepared working folder on it."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster, ClusterError, down, search_path, up
from interrupted_runs import ITERATIONS, Run
from slurm_site import Site, finish

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that use the cluster; `make slow-test` runs them in a process of their own.

    A test that asks for a fixture by its name while it runs is marked slow by its module.
    """
    for item in items:
        own = HERE in item.path.parents
        if "cluster" in getattr(item, "fixturenames", ()) or (own and _is_slow(item)):
            for mark in (pytest.mark.slurm, pytest.mark.slow):
                item.add_marker(mark)


def _is_slow(item: pytest.Item) -> bool:
    return item.get_closest_marker("slow") is not None


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A running cluster: the one of `$CAE_SEG_CLUSTER_DIR`, which stays, or one of our own."""
    search_path()
    given = os.environ.get("CAE_SEG_CLUSTER_DIR")
    cluster = Cluster(Path(given) if given else tmp_path_factory.mktemp("cluster"))
    try:
        up(cluster)
    except ClusterError as error:
        if os.environ.get("CI") == "true":
            pytest.fail(f"no SLURM cluster, and CI=true: {error}")
        pytest.skip(f"NO SLURM CLUSTER, so nothing of SLURM is tested: {error}")
    yield cluster
    if not given:
        down(cluster)


@pytest.fixture(scope="session")
def site(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A working folder for real runs."""
    site = Site(tmp_path_factory.mktemp("site") / "checkout", cluster.environment())
    yield site
    site.close()


@pytest.fixture(scope="session")
def baseline(site: Site) -> Run:
    """The uninterrupted run that others are compared with; a second one trains on two nodes."""
    sheet = site.sheet("baseline", {"uninterrupted": {}, "two_nodes": {"nodes": 2, "cpus": 1}})
    finish(site.snakemake(sheet), site, sheet)
    run = site.run(sheet, "uninterrupted")
    assert run.events("finish") == [ITERATIONS], site.output(sheet)[-3000:]
    return run

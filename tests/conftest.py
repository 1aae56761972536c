"""What tests of several rooms share: the finished demo, and how slow tests are spread."""

import pytest
from checkouts import Checkout


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the slow tests of a file in one process, and begin with those that take longest.

    What they set up once for all takes minutes, and `pytest -n` would do it in every process.
    """
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("xdist_group"):
            shared = "demo_run" in getattr(item, "fixturenames", ())
            group = "demo" if shared else item.nodeid.partition("::")[0]
            item.add_marker(pytest.mark.xdist_group(group))
    items.sort(key=lambda item: item.get_closest_marker("slurm") is None)


@pytest.fixture(scope="session")
def demo_run(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A copy of the repository in which `snakemake --profile demo` was run to its end.

    Tests only read it; `said` is what Snakemake printed.
    """
    copy = Checkout(tmp_path_factory.mktemp("demo"), stub=False)
    copy.said = copy.run("--profile", "demo")
    return copy

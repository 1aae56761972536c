"""What tests of several rooms share: the finished demo."""

import pytest
from checkouts import Checkout


@pytest.fixture(scope="session")
def demo_run(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A copy of the repository in which `snakemake --profile demo` was run to its end.

    Tests only read it; `output` is what Snakemake printed.
    """
    copy = Checkout(tmp_path_factory.mktemp("demo"), stub=False)
    copy.output = copy.run("--profile", "demo")
    return copy

"""What tests of several rooms share: the finished demo."""

import pytest
from checkouts import Checkout


@pytest.fixture(scope="session")
def demo_run(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A copy of the repository in which `make demo` was run to its end.

    Tests only read it; `output` is what was printed.
    """
    copy = Checkout(tmp_path_factory.mktemp("demo"), stub=False)
    copy.install()
    copy.output = copy.shell("make demo")
    return copy

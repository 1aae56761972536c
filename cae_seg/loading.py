"""Loading torch and mmsegmentation without Python's garbage collector, a fifth of that time."""

import contextlib
import gc
import sys
from collections.abc import Iterator

LAST = "mmseg"  # of the libraries that are slow to load


@contextlib.contextmanager
def loading_libraries() -> Iterator[None]:
    """Let the collector rest meanwhile, and never search what is there at the end.

    The libraries make 700 000 objects that stay. Searching them while they become more, and
    again in each full search later, costs a second before the first iteration, and unshares the
    memory of loader workers. Nothing is done where the libraries are there already: what has
    gathered since may be garbage.
    """
    if LAST in sys.modules:
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()

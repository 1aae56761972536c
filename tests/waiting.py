"""Waiting for events in tests: how long one takes never decides a test."""

import subprocess
import time
from collections.abc import Callable

WAIT_SECONDS = 900.0  # guards against hanging


def wait_until(
    what: str, ready: Callable[[], object], during: subprocess.Popen | None = None
) -> object:
    """Wait until `ready` returns something true, and return it.

    Args:
        what: the event, for the message of a failure.
        ready: whether it has happened.
        during: a process without which it cannot happen.
    """
    end = time.monotonic() + WAIT_SECONDS
    while not (found := ready()):
        assert during is None or during.poll() is None, f"the process ended before: {what}"
        assert time.monotonic() < end, f"no event within {WAIT_SECONDS:.0f} s: {what}"
        time.sleep(0.1)
    return found

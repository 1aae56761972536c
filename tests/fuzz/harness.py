"""What all fuzz tests share: budgets, a sandbox for commands, and mutations of bytes and JSON.

`FUZZ_SECONDS` is the time of one test; `make fuzz` sets hours and draws other inputs each time, as
the ordinary tests do not. What a test finds becomes a small named test next to the code that it is
about.
"""

import atexit
import contextlib
import io
import math
import os
import resource
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cae_seg.cli import main
from cae_seg.errors import UserError

SECONDS = float(os.environ.get("FUZZ_SECONDS", "12"))
LONG = SECONDS > 60
LONGEST_SECONDS = 60  # of processor time, of one command
MOST_MEMORY = 2 << 20  # kB that the process may grow by

fuzz_settings = settings(
    max_examples=10**7 if LONG else 400,
    derandomize=not LONG,  # a change is judged by what it changed, not by the luck of the draw
    deadline=None,  # it would count the time in which a busy machine does something else
    suppress_health_check=list(HealthCheck),
    print_blob=True,
    database=None,
)


tried: Counter[str] = Counter()
"""Inputs by test; printed when the process ends."""


@atexit.register
def _report() -> None:
    for name, number in sorted(tried.items()):
        print(f"{number:8} inputs  {name}", file=sys.__stderr__)


def explore(check: Callable[..., None], *strategies: st.SearchStrategy) -> None:
    """Call `check` with values drawn from the strategies until the time of a test is over."""
    end, name = time.monotonic() + SECONDS, os.environ["PYTEST_CURRENT_TEST"].split("::")[-1]

    @fuzz_settings
    @given(st.tuples(*strategies))
    def examine(values: tuple) -> None:
        nonlocal end
        if time.monotonic() > end:
            pytest.skip("the time is over")  # which ends Hypothesis at once
        tried[name.removesuffix(" (call)")] += 1
        begin = time.process_time()
        try:
            check(*values)
            took = time.process_time() - begin
            assert took < LONGEST_SECONDS, f"{took:.0f} s of processor time"
        except BaseException:
            end = math.inf  # a finding is made small, however long that takes
            raise

    with contextlib.suppress(pytest.skip.Exception):
        examine()


@contextlib.contextmanager
def sandbox() -> Iterator[Path]:
    """Work in a fresh folder; afterwards nothing may be around it, run, or fill the memory."""
    outer = Path(tempfile.mkdtemp(prefix="cae-seg-fuzz-"))
    inner, before = outer / "work", Path.cwd()
    inner.mkdir()
    state = os.environ.get("XDG_STATE_HOME")
    os.environ["XDG_STATE_HOME"] = str(inner / "state")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    os.chdir(inner)
    try:
        yield inner
        assert os.listdir(outer) == ["work"], "a file outside of the folder"
        assert not psutil.Process().children(), "a child process"
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak
        assert grown < MOST_MEMORY, f"{grown} kB more memory"
    finally:
        os.chdir(before)
        os.environ.pop("XDG_STATE_HOME")
        if state is not None:
            os.environ["XDG_STATE_HOME"] = state
        shutil.rmtree(outer, ignore_errors=True)


@contextlib.contextmanager
def refusals_of_one_line() -> Iterator[None]:
    """Accept a user's error, which must be one line."""
    try:
        yield
    except UserError as error:
        if "\n" in str(error):
            raise AssertionError("an error of several lines") from error


def run(*arguments: str, unhealthy: bool = False) -> tuple[int, str]:
    """Run a command in this process; return its exit status and what it printed.

    An unforeseen exception, which people see as one line and exit status 1, is a finding here.

    Args:
        arguments: of the command line.
        unhealthy: accept exit status 1 without an error line, by which `doctor` reports a lack.
    """
    stdout, stderr = (io.TextIOWrapper(io.BytesIO(), "utf-8", "backslashreplace") for _ in "12")
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        try:
            code = main(list(arguments))
        except SystemExit as error:  # `--help` and `--version`
            code = error.code or 0
    for stream in (stdout, stderr):
        stream.flush()
    text = "".join(stream.buffer.getvalue().decode() for stream in (stdout, stderr))
    assert code in (0, 2, 75) or (unhealthy and code == 1), f"exit {code}: {text}"
    assert "Traceback" not in text
    errors = [line for line in text.splitlines() if line.startswith("cae-seg: error: ")]
    assert len(errors) == (code == 2), text
    return code, text


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["", "../x", "\x00", "9" * 400, 10**400, -1, 1e308]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


@st.composite
def mutated_bytes(draw: st.DrawFn, content: bytes) -> bytes:
    """Draw `content` with bytes replaced, cut out, repeated or appended."""
    data = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(len(data) - 1, 0)))
        kind = draw(st.sampled_from(["set", "flip", "cut", "drop", "insert", "repeat"]))
        if kind == "set" and data:
            data[at] = draw(st.integers(0, 255))
        elif kind == "flip" and data:
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "cut":
            del data[at:]
        elif kind == "drop":
            del data[at : at + draw(st.integers(1, 64))]
        elif kind == "insert":
            data[at:at] = draw(st.binary(max_size=16))
        else:
            data[at:at] = data[at : at + draw(st.integers(1, 256))]
    return bytes(data)


@st.composite
def mutated_json(draw: st.DrawFn, value: object) -> object:
    """Draw a JSON value with one of its parts replaced, removed or added to."""
    if not isinstance(value, dict | list) or not value or draw(st.integers(0, 5)) == 0:
        return draw(json_values)
    copy = dict(value) if isinstance(value, dict) else list(value)
    keys = list(copy) if isinstance(copy, dict) else range(len(copy))
    key = draw(st.sampled_from(keys))
    if draw(st.integers(0, 4)) == 0:
        del copy[key]
    elif draw(st.booleans()):
        copy[key] = draw(json_values)
    else:
        copy[key] = draw(mutated_json(copy[key]))
    return copy

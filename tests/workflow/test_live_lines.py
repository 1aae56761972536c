"""`--profile local` on a terminal: lines that are updated in place instead of Snakemake's messages.

What a pipe gets is in test_demo_run.py.
"""

import os
import pty
import re
import select
import subprocess
import sys
import time

import pytest
from checkouts import Checkout
from interrupted_runs import Run, write_sheet
from waiting import WAIT_SECONDS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

TARGETS = ["results/sheet/held/seed_0/run.json", "results/sheet/refused/seed_0/run.json"]
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
HELD_AT = 3


class Terminal:
    """A process on a pseudo-terminal, and everything that it wrote."""

    def __init__(self, command: list[str], **options) -> None:
        self._master, slave = pty.openpty()
        self.process = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, start_new_session=True, **options
        )
        os.close(slave)
        self.raw = ""

    @property
    def text(self) -> str:
        """What was written, without control sequences."""
        return CONTROL.sub("", self.raw).replace("\r\n", "\n")

    def read_until(self, *texts: str) -> None:
        """Read until all texts were written, or without any to the end."""
        end = time.monotonic() + WAIT_SECONDS
        while not texts or not all(text in self.text for text in texts):
            assert time.monotonic() < end, self.text
            if not select.select([self._master], [], [], 1)[0]:
                continue
            try:
                self.raw += os.read(self._master, 65536).decode(errors="replace")
            except OSError:  # the process has closed the terminal
                assert not texts, self.text
                return


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Checkout:
    return Checkout(tmp_path_factory.mktemp("live"), stub=False)


@pytest.fixture(scope="module")
def terminal(checkout) -> Terminal:
    """A run that is held while its line is read, and one that is refused; both over."""
    rows = {"held": {}, "refused": {"device": "cuda"}}
    write_sheet(checkout.path / "sheet.yaml", rows, gpus=0, cpus=1, iterations=10)
    run = Run(checkout.path / "results/sheet/held/seed_0")
    run.hold(HELD_AT)
    words = [*TARGETS, "--profile", "local", "--cores", "2", "--config", "sheet=sheet.yaml"]
    shown = Terminal(
        [sys.executable, "-m", "snakemake", *words],
        cwd=checkout.path,
        env=checkout.environment() | {"TERM": "xterm", "COLUMNS": "300", "LINES": "40"},
    )
    shown.read_until(
        f"train held seed 0: {HELD_AT}/10 iterations", "failed: cae-seg: error: --device cuda"
    )
    run.release()
    shown.read_until()
    shown.process.wait(WAIT_SECONDS)
    return shown


def test_a_running_job_is_one_line_updated_in_place(terminal):
    lines = re.findall(r"train held seed 0: (\d+)/10 iterations, .*loss \d.*", terminal.text)
    assert str(HELD_AT) in lines
    assert "\x1b[1A\x1b[2K" in terminal.raw  # one line up, erase it


def test_one_line_sums_up_the_sheet(terminal):
    assert "2 runs: 1 running, 1 failed" in terminal.text
    assert "2 runs: 1 trained, 1 failed" in terminal.text


def test_messages_of_snakemake_and_output_of_jobs_are_in_logs_alone(terminal, checkout):
    chatter = ("Finished jobid", "steps (", "Execute ")
    (log,) = (checkout.path / ".snakemake/log").glob("*.log")
    assert all(text in log.read_text() for text in chatter)
    assert not [text for text in chatter if text in terminal.text]
    output = "train held seed 0: 10/10 iterations (100 %)"
    assert output in (checkout.path / "results/sheet/logs/fine_tune/held_seed0.log").read_text()
    assert output not in terminal.text


def test_errors_and_summary_stay_below_the_lines(terminal):
    assert terminal.process.returncode == 1
    after = terminal.text.split("train held")[-1]
    assert "refused seed 0 failed: " in after
    assert "log: results/sheet/logs/fine_tune/refused_seed0.log" in after
    assert "Run `snakemake results" in after
    assert "CalledProcessError" not in terminal.text

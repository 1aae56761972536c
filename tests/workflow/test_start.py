"""Starting the workflow: what a killed Snakemake leaves, and what looking at the plan leaves."""

import os
import signal
import time

import pytest

DEMO = ("--profile", "demo")


def files(checkout) -> set[str]:
    """Return every file of a checkout but Snakemake's own and the caches of Python."""
    found = (path for path in checkout.path.rglob("*") if path.is_file())
    return {
        str(path.relative_to(checkout.path))
        for path in found
        if not {".snakemake", "__pycache__", "home"} & set(path.parts)
    }


@pytest.fixture
def killed(checkout):
    """A checkout whose Snakemake was killed while a training ran."""
    stub = checkout.path / "bin/cae-seg"
    text = stub.read_text()
    wait = "[ $1 = train ] && touch training && sleep 600"
    stub.write_text(text.replace("for argument", f"{wait}\nfor argument", 1))
    with (checkout.path / "out").open("w") as out:
        process = checkout.start(*DEMO, output=out)
        while not (checkout.path / "training").exists():
            assert process.poll() is None, (checkout.path / "out").read_text()
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    stub.write_text(text)
    return checkout


def test_a_start_after_a_killed_snakemake_names_the_command_that_unlocks(killed):
    refused = killed.snakemake(*DEMO)
    assert refused.returncode != 0
    lines = [line for line in refused.stderr.splitlines() if "`snakemake --unlock`" in line]
    assert len(lines) == 1
    unlocked = killed.snakemake("--unlock")
    assert unlocked.returncode == 0, unlocked.stderr
    assert "`snakemake --unlock`" not in unlocked.stderr
    assert killed.snakemake(*DEMO).returncode == 0


@pytest.mark.parametrize("arguments", [("--dry-run", *DEMO), ("--lint",), ("--unlock",)])
def test_a_look_at_the_workflow_leaves_no_trace(checkout, arguments):
    before = files(checkout)
    checkout.run(*arguments)
    assert files(checkout) == before
    left = {path.name for path in (checkout.path / ".snakemake").iterdir()}
    assert not left & {"alive", "slurm_jobs", "slurm_logs"}
    assert not list((checkout.path / ".snakemake").glob("locks/*"))

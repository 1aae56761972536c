import json
import subprocess
import sys

import pytest
from fake_runs import (
    BEGUN,
    event_line,
    finish_run,
    make_row,
    make_run,
    make_sheet,
    record_lines,
    start_run,
    write_lines,
)

from cae_seg.errors import UserError
from cae_seg.results.status import failure_summary, write_status
from cae_seg.run.failure import read_failure, recording_failure


@pytest.fixture
def sheet(tmp_path):
    """Runs in every state."""
    names = ("done", "runs", "waits", "broke", "stopped", "trained")
    sheet = make_sheet(tmp_path / "results", [make_row(name) for name in names])
    make_run(sheet.run_dir("done", 0), "done")
    for name, upto in (("runs", 100), ("broke", 50), ("stopped", 80)):
        start_run(sheet.run_dir(name, 0), name)
        write_lines(sheet.run_dir(name, 0) / "work/metrics.jsonl", record_lines(upto))
    lock = {"host": "node7", "pid": 1, "slurm_job_id": "4711"}
    (sheet.run_dir("runs", 0) / "work/writer.lock.json").write_text(json.dumps(lock))
    stop = event_line("stop", 80, late=0.1)
    write_lines(sheet.run_dir("stopped", 0) / "work/metrics.jsonl", [stop])
    finish_run(start_run(sheet.run_dir("trained", 0), "trained"))
    with pytest.raises(RuntimeError), recording_failure(sheet.run_dir("broke", 0) / "work"):
        raise RuntimeError("checkpoints/a.pth: no such file\nmore")
    return sheet


def test_every_run_is_one_line_with_state_iteration_score_and_time_left(sheet):
    text = write_status(sheet, now=BEGUN + 60)
    lines = {line.split()[0]: line for line in text.splitlines() if " seed 0 " in line}
    assert len(lines) == 6
    for part in ("running", "100/200", "1.333", "43.00 at 100", "32.0", "40 s", "node7", "4711"):
        assert part in lines["runs"]
    assert "48.00 at 200" in lines["done"]
    assert text.splitlines()[-1] == (
        "6 runs: 1 finished, 1 trained, 1 queued, 1 stopped, 1 running, 1 failed,"
        " mean ETA of running ones 40 s"
    )


def test_a_failed_run_is_listed_first_with_its_error(sheet):
    text = write_status(sheet, now=BEGUN + 60)
    assert text.splitlines()[2].split()[:4] == ["broke", "seed", "0", "failed"]
    assert "broke seed 0 failed: checkpoints/a.pth: no such file" in text
    assert "more" not in text


def test_a_run_that_trains_again_is_no_longer_failed(sheet):
    work = sheet.run_dir("broke", 0) / "work"
    late = read_failure(work)["time"] - BEGUN + 5
    write_lines(work / "metrics.jsonl", [event_line("resume", 50, late=late)])
    states = json.loads(write_status(sheet, format="json", now=BEGUN + late + 60))
    assert [state["state"] for state in states if state["experiment"] == "broke"] == ["running"]
    with recording_failure(work):
        pass
    assert read_failure(work) is None


def test_a_job_that_died_on_this_host_is_failed_at_once_with_its_last_error(tmp_path):
    sheet = make_sheet(tmp_path, [make_row("row")])
    work = start_run(sheet.run_dir("row", 0)) / "work"
    write_lines(work / "metrics.jsonl", record_lines(50))
    hold = "import sys; from cae_seg.locks import FileLock; from pathlib import Path; "
    hold += "FileLock(Path(sys.argv[1])).acquire(); import os; os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", hold, str(work / "writer.lock")])
    log = tmp_path / "logs/fine_tune/row_seed0.log"
    log.parent.mkdir(parents=True)
    log.write_text("iteration 50\nRuntimeError: CUDA out of memory\nbye\n")
    text = write_status(sheet, now=BEGUN + 26)
    assert "row seed 0 failed: RuntimeError: CUDA out of memory" in text
    assert f"log: {log}" in text


def test_a_job_that_was_refused_before_it_began_is_failed_at_once(tmp_path):
    sheet = make_sheet(tmp_path, [make_row("row")])
    log = tmp_path / "logs/fine_tune/row_seed0.log"
    log.parent.mkdir(parents=True)
    log.write_text("cae-seg: error: --gpus 8: only 1 present; ask for fewer\n")
    assert "row seed 0 failed: cae-seg: error: --gpus 8" in write_status(sheet)


def test_what_is_left_after_a_failed_workflow_is_listed(sheet):
    lines = failure_summary(sheet)
    assert "broke seed 0 failed: checkpoints/a.pth: no such file" in lines
    assert "stopped seed 0 stopped at iteration 80 of 200" in lines
    assert lines[-1].startswith("Run the same command again to resume")


def test_a_failure_leaves_nothing_where_no_run_is(tmp_path):
    with pytest.raises(UserError), recording_failure(tmp_path / "work"):
        raise UserError("no such config")
    assert not list(tmp_path.iterdir())

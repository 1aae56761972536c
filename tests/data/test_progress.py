import io

import cae_seg.progress as module
from cae_seg.progress import progress, run_label, training_note


def test_log_gets_one_line_for_a_quick_loop():
    log = io.StringIO()
    assert list(progress(range(1000), "verify", "image", stream=log)) == list(range(1000))
    assert log.getvalue() == "verify: 1000/1000 image (100 %), 0 s elapsed\n"


def test_log_lines_are_occasional_and_tell_the_time_left(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    log = io.StringIO()
    with progress(100, "train", "iteration", initial=50, stream=log) as bar:
        for _ in range(50):
            now[0] += 2.0
            bar.update()
            bar.note("loss 1.5")
    lines = log.getvalue().splitlines()
    assert len(lines) == 5
    assert lines[0] == "train: 60/100 iteration (60 %), 20 s elapsed, 1 min 20 s left, loss 1.5"
    assert lines[-1].startswith("train: 100/100 iteration (100 %), 1 min 40 s elapsed")


def test_bytes_and_unknown_totals():
    log = io.StringIO()
    with progress((), "download", "B", stream=log) as bar:
        bar.update(2_500_000)
    assert log.getvalue().startswith("download: 2.5 MB, ")


def test_terminal_gets_a_bar():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    assert list(progress([1, 2], "verify", "image", stream=terminal)) == [1, 2]
    assert "\r" in terminal.getvalue()
    assert "2/2" in terminal.getvalue()


def test_the_display_ends_when_the_loop_breaks():
    log = io.StringIO()
    for step in progress([1, 2, 3], "verify", "image", stream=log):
        if step == 2:
            break
    assert log.getvalue().startswith("verify: 1/3 image")


def test_a_line_of_a_training_names_run_score_with_its_iteration_and_speed():
    log = io.StringIO()
    note = training_note(
        {"loss": 1.23456, "lr": 9.8e-5, "images_per_second": 31.04, "gpu_memory_mb": 12_595},
        miou=(1600, 41.2345),
    )
    label = run_label("vit_b_800", 1)
    with progress(160_000, f"train {label}", "iterations", initial=1999, stream=log) as bar:
        bar.note(note)
        bar.update()
    (line,) = log.getvalue().splitlines()
    assert line.startswith("train vit_b_800 seed 1: 2000/160000 iterations (1 %), 0 s elapsed, ")
    assert line.endswith(
        " left, loss 1.235, mIoU 41.23 at 1600, lr 9.80e-05, 31.0 images/s, 12.3 GB"
    )


def test_a_line_leaves_out_what_is_not_known():
    assert training_note({"loss": 2.0, "lr": None}) == "loss 2.000"
    assert run_label(None, 0) == "seed 0"

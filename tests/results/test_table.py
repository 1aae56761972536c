import dataclasses
import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from fake_runs import (
    BEGUN,
    evaluate_run,
    event_line,
    finish_run,
    make_row,
    make_run,
    make_sheet,
    make_sweep,
    record_lines,
    start_run,
    write_lines,
)

from cae_seg.cli import main
from cae_seg.errors import UserError
from cae_seg.results.aggregate import aggregate
from cae_seg.results.collect import collect_runs
from cae_seg.results.lr_trend import check_claim
from cae_seg.results.table import write_table
from cae_seg.run import provenance
from cae_seg.run.paths import RunDir
from cae_seg.sheet.reading import load_sheet
from cae_seg.sheet.schema import Data

SCORES = {
    (1600, "1e-4"): (50.3, 50.5),
    (300, "2e-4"): (47.0, 47.4),
    (300, "4e-4"): (48.0, 48.6, 48.3),
    (800, "2e-4"): (49.7,),
}


@pytest.fixture
def sheet(tmp_path):
    return make_sweep(tmp_path / "results", SCORES)


def read_rows(text):
    """Parse the rows of a Markdown table."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return [dict(zip(cells[0], row, strict=True)) for row in cells[2:]]


def replaced(sheet, name, **values):
    rows = [row.model_copy(update=values) if row.name == name else row for row in sheet.experiments]
    return make_sheet(sheet.results, rows)


def test_columns_begin_as_the_published_table(sheet):
    columns = list(read_rows(write_table(replaced(sheet, "vit_b_800_lr2e-4", published_miou=49.6))))
    assert list(columns[0]) == [
        "Backbone",
        "#Pretrained Epoch",
        "mIoU",
        "Config",
        "Learning rate",
        "Seeds",
        "Spread",
        "Published mIoU",
        "Difference",
        "GPU-hours",
    ]


def test_columns_that_tell_no_row_from_another_fold_into_a_line_below(tmp_path):
    scores = {(300, "2e-4"): (47.0,), (1600, "1e-4"): (50.3,)}
    text = write_table(make_sweep(tmp_path / "results", scores))
    assert list(read_rows(text)[0]) == [
        "Backbone", "#Pretrained Epoch", "mIoU", "Config", "Learning rate"]  # fmt: skip
    assert "Same in all rows: Seeds 0; GPU-hours 0.0561." in text
    assert "No row has: Spread, Published mIoU, Difference, Notes." in text


def test_the_published_table_fits_a_page(tmp_path):
    sheet = load_sheet("config/published.yaml")
    sheet = make_sheet(tmp_path / "results", sheet.experiments)
    for row in sheet.experiments:
        make_run(sheet.run_dir(row.name, 0), row.name, 0, config=row.stem)
    text = write_table(sheet)
    assert max(len(line) for line in text.splitlines() if line.startswith("|")) <= 120
    assert [row["Config"] for row in read_rows(text)] == [f"[{n}]" for n in range(1, 6)]


def test_chosen_columns_are_shown_in_their_order(sheet):
    text = write_table(sheet, columns=["learning rate", " mIoU", "GPU-hours", "iterations"])
    rows = read_rows(text)
    assert list(rows[0]) == ["Learning rate", "mIoU", "GPU-hours", "iterations"]
    assert rows[2]["Learning rate"] == "**4e-4**"
    assert {row["iterations"] for row in rows} == {"200"}


def test_an_unknown_column_is_refused_with_the_nearest_name(sheet):
    with pytest.raises(UserError, match="--columns Sprad: no such column; did you mean 'Spread'"):
        write_table(sheet, columns=["Sprad"])


def test_several_sheets_are_joined_and_a_shared_run_counts_once(sheet, tmp_path):
    other = make_sweep(tmp_path / "other", {(300, "4e-4"): (49.5,)})
    other = dataclasses.replace(other, path=Path("config/other.yaml"))
    rows = read_rows(write_table([sheet, sheet, other]))
    assert [row["mIoU"] for row in rows][2:] == ["48.30 ± 0.30 (n=3)", "49.70", "49.50"]
    assert [row["Sheet"] for row in rows] == ["made_up"] * 4 + ["other"]
    assert [row["Learning rate"] for row in rows][2:] == ["4e-4", "2e-4", "**4e-4**"]


def test_rows_are_in_the_sheets_order_with_mean_deviation_and_n(sheet):
    rows = read_rows(write_table(sheet))
    assert [row["#Pretrained Epoch"] for row in rows] == ["1600", "300", "300", "800"]
    assert rows[0]["mIoU"] == "50.40 ± 0.14 (n=2)"
    assert rows[2]["mIoU"] == "48.30 ± 0.30 (n=3)"
    assert rows[2]["Spread"] == "48.00 to 48.60"
    assert rows[3]["mIoU"] == "49.70"
    assert [row["Seeds"] for row in rows] == ["0 1", "0 1", "0 1 2", "0"]


def test_the_best_rate_is_marked_where_there_is_a_choice(sheet):
    rates = [row["Learning rate"] for row in read_rows(write_table(sheet))]
    assert rates == ["1e-4", "2e-4", "**4e-4**", "2e-4"]


def test_a_row_that_cannot_be_compared_is_not_the_best(sheet):
    folder = sheet.run_dir("vit_b_300_lr4e-4", 1)
    make_run(folder, "vit_b_300_lr4e-4", 1, miou=60.0, iterations=10)
    rows = read_rows(write_table(sheet))
    assert rows[2]["Learning rate"] == "4e-4"
    assert rows[2]["Notes"] == "10 iterations"


def test_published_value_and_difference_are_shown(sheet):
    rows = read_rows(write_table(replaced(sheet, "vit_b_800_lr2e-4", published_miou=49.6)))
    assert (rows[3]["Published mIoU"], rows[3]["Difference"]) == ("49.6", "+0.10")
    assert rows[0]["Published mIoU"] == rows[0]["Difference"] == "–"


def test_the_link_of_a_config_still_works_after_the_results_were_copied(sheet, tmp_path):
    write_table(sheet, tmp_path / "results/table.md")
    shutil.copytree(tmp_path / "results", tmp_path / "elsewhere/mine")
    shutil.rmtree(tmp_path / "results")
    text = (tmp_path / "elsewhere/mine/table.md").read_text()
    assert read_rows(text)[0]["Config"] == "[1]"
    (link,) = re.findall(r"\[1\] \[made_up\]\((.+?)\)", text)
    assert (tmp_path / "elsewhere/mine" / link).is_file()


def test_a_config_of_a_published_repository_has_a_web_address(monkeypatch):
    answers = {
        "remote": "git@github.com:someone/cae-seg.git",
        "branch": "origin/main",
        "ls-tree": "config/demo.yaml",
    }
    monkeypatch.setattr(provenance, "_git", lambda command, *_: answers[command])
    address = "https://github.com/someone/cae-seg/blob/c0ffee/config/demo.yaml"
    assert provenance.web_address("config/demo.yaml", "c0ffee") == address
    answers["remote"] = "https://user:secret@git.example.org:8443/group/sub/cae-seg"
    address = "https://git.example.org/group/sub/cae-seg/blob/c0ffee/config/demo.yaml"
    assert provenance.web_address("config/demo.yaml", "c0ffee") == address
    answers["branch"] = ""
    assert provenance.web_address("config/demo.yaml", "c0ffee") is None


def test_gpu_hours_are_those_of_all_seeds(sheet):
    rows = read_rows(write_table(sheet))
    assert float(rows[2]["GPU-hours"]) == pytest.approx(3 * float(rows[3]["GPU-hours"]), rel=0.01)


def test_csv_is_unrounded_one_row_a_combination(sheet, tmp_path):
    write_table(sheet, csv=tmp_path / "table.csv")
    frame = pd.read_csv(tmp_path / "table.csv", dtype={"learning_rate": str})
    assert list(frame.columns[:4]) == ["Backbone", "#Pretrained Epoch", "mIoU", "Config"]
    assert len(frame) == 4
    assert frame["mIoU"][2] == pytest.approx(sum((48.0, 48.6, 48.3)) / 3, abs=1e-12)
    assert list(frame["learning_rate"]) == ["1e-4", "2e-4", "4e-4", "2e-4"]
    assert list(frame["best"]) == [False, False, True, False]


def test_json_holds_unrounded_rows(sheet):
    content = json.loads(write_table(sheet, format="json"))
    assert content["rows"][0]["mIoU"] == pytest.approx(50.4)
    assert content["rows"][3]["mIoU_std"] is None


def test_latex_sets_numbers_with_siunitx(sheet):
    latex = write_table(sheet, format="latex")
    assert "S[table-format=2.2(2),uncertainty-mode=separate]" in latex
    assert r"{ViT-B} & 300 & 48.30 +- 0.30 & {[1]} & \textbf{\boldmath\num{4e-4}}" in latex


@pytest.mark.parametrize("partial", [False, True])
def test_latex_compiles(sheet, tmp_path, partial):
    require_latex()
    sheet = replaced(sheet, "vit_b_800_lr2e-4", published_miou=49.6, method="50 % & #1_{x}")
    if partial:
        (sheet.run_dir("vit_b_300_lr4e-4", 1) / "metrics.json").unlink()
    table = write_table(sheet, format="latex", partial=partial)
    (tmp_path / "table.tex").write_text(PREAMBLE + table + "\n\\end{document}\n")
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "table.tex"],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Warning: Invalid" not in done.stdout
    assert (tmp_path / "table.pdf").stat().st_size > 10_000


PREAMBLE = r"""
\documentclass{article}
\usepackage{booktabs}
\usepackage{siunitx}
\begin{document}
\small
"""


def require_latex():
    """Skip where there is no LaTeX; under CI that is a failure."""
    if shutil.which("pdflatex"):
        return
    message = "no pdflatex (Debian: texlive-latex-base, texlive-science)"
    if os.environ.get("CI") == "true":
        pytest.fail(message)
    pytest.skip(message)


def test_an_unknown_format_is_refused(sheet):
    with pytest.raises(UserError, match="--format xls: unknown; one of md, csv, latex, json"):
        write_table(sheet, format="xls")


def test_the_footer_names_data_code_and_date(sheet):
    last = write_table(sheet).strip().splitlines()[-1]
    assert last.startswith(f"Data {'d' * 12}; code {'a' * 10}; 200 iterations; Made Up 80GB; ")
    assert re.search(r"\d{4}-\d\d-\d\d", last)


@pytest.mark.parametrize(
    ("change", "note"),
    [
        ({"data": {"fingerprint": "b" * 64}}, "other data (bbbbbbbb)"),
        ({"iterations": 100}, "100 iterations"),
        ({"precision": "fp32"}, "fp32"),
        ({"batch": {"global_batch": 8}}, "batch of 8"),
        ({"code": {"commit": "b", "dirty": False, "fingerprint": "0"}}, "code changed since"),
        ({"code": {"commit": "b", "dirty": True, "fingerprint": "f" * 64}}, "uncommitted code"),
    ],
)
def test_what_keeps_a_row_from_being_compared_is_noted_on_it(sheet, change, note):
    name = "vit_b_800_lr2e-4"
    make_run(sheet.run_dir(name, 0), name, 0, **change)
    notes = [row["Notes"] for row in read_rows(write_table(sheet, code_fingerprint="f" * 64))]
    assert notes == ["", "", "", note]


def test_a_row_that_changes_its_recipe_is_marked(sheet):
    name = "vit_b_800_lr2e-4"
    changed = replaced(sheet, name, crop_size=(256, 256), options={"model.backbone.depth": "9"})
    rows = read_rows(write_table(changed, code_fingerprint="f" * 64))
    note = "not the recipe: crop_size 256 x 256, model.backbone.depth 9"
    assert [row["Notes"] for row in rows] == ["", "", "", note]
    assert "**" not in rows[-1]["mIoU"]


def test_changed_code_is_noted_on_every_row(sheet):
    assert "Same in all rows: Notes code changed since." in write_table(
        sheet, code_fingerprint="now"
    )


def test_an_evaluation_of_other_weights_is_noted(sheet):
    evaluate_run(sheet.run_dir("vit_b_800_lr2e-4", 0), weights_sha256="0" * 64)
    note = read_rows(write_table(sheet))[3]["Notes"]
    assert note == "trained again since the evaluation"


def test_numbers_with_flips_and_several_scales_have_columns_of_their_own(sheet):
    name = "vit_b_800_lr2e-4"
    run = RunDir(sheet.run_dir(name, 0))
    evaluate_run(run.path, 51.25, aug_test=True)
    run.metrics_file.rename(run.augmented_file)
    evaluate_run(run.path, 49.7)
    changed = replaced(sheet, name, published_miou=49.6, published_miou_multi_scale=51.0)
    rows = read_rows(write_table(changed))
    assert rows[3]["mIoU"] == "49.70"
    assert rows[3]["Difference"] == "+0.10"
    assert (rows[3]["Multi-scale mIoU"], rows[3]["Published multi-scale"]) == ("51.25", "51.0")
    assert rows[0]["Multi-scale mIoU"] == "–"


def test_sheets_of_the_command_line_join(capsys):
    sheets = ("--sheet", "config/published.yaml", "--sheet", "config/backbones.yaml")
    assert main(["table", "--partial", *sheets]) == 0
    rows = read_rows(capsys.readouterr().out)
    assert {row["Sheet"] for row in rows} == {"published", "backbones"}
    swin = next(row for row in rows if row["Backbone"] == "Swin-T")
    assert (swin["Published mIoU"], swin["Published multi-scale"]) == ("44.51", "45.81")
    assert swin["Method"] == "Supervised"
    assert {row["Head"] for row in rows} == {
        "UperNet", "SETR Naive", "SETR PUP", "SETR MLA", "linear"}  # fmt: skip


def test_an_augmented_evaluation_alone_is_no_score_of_the_common_kind(sheet):
    evaluate_run(sheet.run_dir("vit_b_300_lr4e-4", 1), 60.0, aug_test=True)
    rows = read_rows(write_table(sheet))
    assert rows[2]["mIoU"] == "48.15 ± 0.21 (n=2)"
    assert rows[2]["Multi-scale mIoU"] == "60.00"


def compared(tmp_path, *rows):
    """Make a finished run for each row (a mapping of values, mIoU and metadata of its run)."""
    made = []
    for number, (values, miou, metadata) in enumerate(rows):
        row = make_row(f"row{number}", **{"learning_rate": "1e-4", **values})
        made.append(row)
        rate = float(row.learning_rate)
        make_run(tmp_path / row.name / "seed_0", row.name, 0, miou=miou, learning_rate=rate,
                 **metadata)  # fmt: skip
    leaves = Data(type="folder", source="leaves", reduce_zero_label=False)
    return dataclasses.replace(make_sheet(tmp_path, made), datasets={"leaves": leaves})


OTHER_DATA = {"data": {"fingerprint": "e" * 64, "root": "/leaves"}}


def test_rows_of_several_data_sets_are_grouped_and_not_compared(tmp_path):
    sheet = compared(
        tmp_path,
        ({"data": "leaves"}, 55.0, OTHER_DATA),
        ({}, 48.0, {}),
        ({"data": "leaves", "learning_rate": "2e-4"}, 56.0, OTHER_DATA),
        ({"learning_rate": "2e-4"}, 47.0, {}),
    )
    rows = read_rows(write_table(sheet))
    assert [row["Data"] for row in rows] == ["leaves", "leaves", "ADE20K", "ADE20K"]
    assert [row["Learning rate"] for row in rows] == ["1e-4", "**2e-4**", "**1e-4**", "2e-4"]
    assert "Notes" not in rows[0]
    tests = check_claim(collect_runs(sheet))
    assert [test.among for test in tests] == ["leaves", "ADE20K"]


def test_best_rate_is_of_each_method_and_head(tmp_path):
    sheet = compared(
        tmp_path,
        ({}, 48.0, {}),
        ({"learning_rate": "2e-4"}, 49.0, {}),
        ({"head": "linear"}, 40.0, {"iterations": 100}),
        ({"head": "linear", "learning_rate": "2e-4"}, 39.0, {"iterations": 100}),
        ({"method": "MAE"}, 30.0, {}),
        ({"method": "MAE", "learning_rate": "2e-4"}, 31.0, {}),
    )
    rows = read_rows(write_table(sheet))
    rates = [row["Learning rate"] for row in rows]
    assert rates == ["1e-4", "**2e-4**", "**1e-4**", "2e-4", "1e-4", "**2e-4**"]
    assert [row["Method"] for row in rows] == ["CAE"] * 4 + ["MAE"] * 2
    assert [row["Head"] for row in rows][1:4] == ["made", "linear", "linear"]
    assert "Data" not in rows[0]
    assert "Notes" not in rows[0]


@pytest.mark.parametrize(
    ("values", "metadata", "note"),
    [
        ({"frozen": True}, {}, "frozen"),
        ({}, {"crop": [640, 640]}, "crop 640 x 640"),
        (
            {},
            {"normalisation": {"mean": [127.5] * 3, "std": [127.5] * 3}},
            "normalisation mean 127.5 127.5 127.5, std 127.5 127.5 127.5",
        ),
    ],
)
def test_notes_name_a_difference_only_within_a_group(tmp_path, values, metadata, note):
    common = {"crop": [512, 512], "normalisation": {"mean": [123.675] * 3, "std": [58.395] * 3}}
    rows = [({}, 48.0, common), ({"learning_rate": "2e-4"}, 49.0, common)]
    other = (values | {"learning_rate": "3e-4"}, 50.0, common | metadata)
    alone = (values | {"method": "MAE"}, 50.0, common | metadata)
    found = read_rows(write_table(compared(tmp_path, *rows, other, alone)))
    assert [row["Notes"] for row in found] == ["", "", note, ""]
    assert found[1]["Learning rate"] == "**2e-4**"


def test_a_missing_run_is_refused_without_partial(sheet):
    (sheet.run_dir("vit_b_300_lr4e-4", 1) / "metrics.json").unlink()
    with pytest.raises(UserError, match=r"seed_1/metrics\.json: is missing \(1 of 8 runs"):
        write_table(sheet)


def test_a_table_is_written_whole_or_not_at_all(sheet, tmp_path):
    out = tmp_path / "table.md"
    write_table(sheet, out)
    before = out.read_text()
    (sheet.run_dir("vit_b_300_lr4e-4", 1) / "metrics.json").write_text("{")
    with pytest.raises(UserError, match="not a JSON file"):
        write_table(sheet, out)
    assert out.read_text() == before
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["table.md"]


def states(sheet, now):
    frame = aggregate(collect_runs(sheet, now=now))
    return dict(zip(frame["experiment"], frame["state"], strict=True))


def test_partial_shows_how_far_every_row_is(tmp_path):
    results = tmp_path / "results"
    rows = [make_row(name) for name in ("done", "runs", "waits", "broke", "stopped", "trained")]
    sheet = make_sheet(results, rows)
    make_run(results / "done" / "seed_0", "done")
    for name, upto in (("runs", 100), ("broke", 50), ("stopped", 80)):
        start_run(results / name / "seed_0", name)
        write_lines(results / name / "seed_0/work/metrics.jsonl", record_lines(upto))
    write_lines(results / "stopped/seed_0/work/metrics.jsonl", [event_line("stop", 80, late=0.1)])
    finish_run(start_run(results / "trained" / "seed_0", "trained"))
    for line_of_broken in [results / "broke/seed_0/work/metrics.jsonl"]:
        shift_times(line_of_broken, -5000)
    log = results / "logs/fine_tune/broke_seed0.log"
    log.parent.mkdir(parents=True)
    log.write_text("RuntimeError: out of memory")
    found = states(sheet, now=BEGUN + 60)
    end = time.strftime("%Y-%m-%d %H:%M", time.localtime(BEGUN + 100))
    assert found == {
        "done": "finished",
        "runs": f"running (100 of 200 iterations, ends about {end})",
        "waits": "queued",
        "broke": f"failed (50 of 200 iterations, log {log})",
        "stopped": "stopped (80 of 200 iterations, resumes when started again)",
        "trained": "trained (to be evaluated)",
    }
    rows = read_rows(write_table(sheet, partial=True))
    assert rows[0]["mIoU"] == "48.00"
    assert rows[2]["mIoU"] == "–"
    assert rows[2]["State"] == "queued"


def shift_times(path, seconds):
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    path.unlink()
    write_lines(path, [line | {"time": line["time"] + seconds} for line in lines])


def test_seeds_of_one_row_may_be_in_different_states(tmp_path):
    sheet = make_sheet(tmp_path, [make_row("row", seeds=(0, 1))])
    make_run(tmp_path / "row" / "seed_0", "row", miou=48.0)
    row = read_rows(write_table(sheet, partial=True))[0]
    assert (row["mIoU"], row["Seeds"]) == ("48.00", "0")
    assert row["State"] == "seed 0: finished; seed 1: queued"


def test_a_silent_run_whose_writer_lives_is_running(tmp_path):
    sheet = make_sheet(tmp_path, [make_row("row")])
    run = start_run(tmp_path / "row" / "seed_0")
    write_lines(run / "work/metrics.jsonl", record_lines(50))
    long_after = BEGUN + 1e6
    assert states(sheet, long_after)["row"].startswith("failed")
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run / "work/writer.lock")],
        stdout=subprocess.PIPE,
        stdin=subprocess.PIPE,
    )
    try:
        assert holder.stdout.readline() == b"held\n"
        assert states(sheet, long_after)["row"].startswith("running (50 of 200 iterations")
    finally:
        holder.communicate()
    assert states(sheet, long_after)["row"].startswith("failed")


HOLD = """
import fcntl, sys
stream = open(sys.argv[1], "w")
fcntl.flock(stream, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


def test_a_job_that_died_before_its_first_iteration_names_its_log(tmp_path):
    sheet = make_sheet(tmp_path, [make_row("row")])
    log = tmp_path / "logs/fine_tune/row_seed0.log"
    log.parent.mkdir(parents=True)
    log.write_text("no such file")
    assert states(sheet, time.time())["row"] == "running (begins)"
    assert states(sheet, time.time() + 1e4)["row"] == f"failed (log {log})"


def test_a_thousand_runs_are_gathered_by_opening_few_files_of_each_once(tmp_path, monkeypatch):
    rows = [make_row(f"row_{number}", seeds=(0, 1)) for number in range(500)]
    sheet = make_sheet(tmp_path, rows)
    template = make_run(tmp_path / "template")
    for row in rows:
        for seed in row.seeds:
            folder = sheet.run_dir(row.name, seed)
            folder.mkdir(parents=True)
            for name in ("run.json", "metrics.json"):
                (folder / name).hardlink_to(template / name)
    opened = []
    open_file = io.open

    def count(file, *args, **options):
        opened.append(file)
        return open_file(file, *args, **options)

    monkeypatch.setattr(io, "open", count)
    assert write_table(sheet).count("| ViT-B ") == 500
    assert 2000 <= len(opened) <= 4000
    assert len(set(opened)) == len(opened)


def test_the_table_starts_without_torch_matplotlib_and_mlflow():
    script = (
        "import sys, cae_seg.results.table; "
        "print([m for m in ('torch', 'matplotlib', 'mlflow', 'mmengine') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr

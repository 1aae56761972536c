"""`doctor`, `clean`, shell completion, and the names suggested for mistyped ones."""

import json
import subprocess
from pathlib import Path

import pytest
from fake_runs import make_run

from cae_seg.cli import main
from cae_seg.locks import FileLock

SHEET = """\
results: results
data: {{source: {source}, root: data}}
experiments:
  - name: row
    backbone: ViT-B
    pretraining_epochs: 300
    checkpoint: {checkpoint}
    config: recipe.py
    learning_rate: 1e-4
    seeds: [0, 1]
"""


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.py").write_text("")
    return tmp_path


def write_sheet(source: str = "absent.zip", checkpoint: str = "absent.pth") -> None:
    Path("sheet.yaml").write_text(SHEET.format(source=source, checkpoint=checkpoint))


def doctor(capsys) -> tuple[int, str]:
    return main(["doctor", "--sheet", "sheet.yaml"]), capsys.readouterr().out


def test_the_doctor_names_what_the_sheet_lacks_and_the_fix(folder, capsys):
    write_sheet()
    status, text = doctor(capsys)
    assert status == 1
    assert "MISSING checkpoint absent.pth: no such file\n        fix: download it" in text
    assert "MISSING data: absent.zip: no such file or folder\n        fix: change" in text
    assert "sheet sheet.yaml: 1 experiments, 2 runs" in text


def test_the_doctor_tells_what_the_workflow_does_by_itself(folder, capsys):
    Path("here.pth").touch()
    write_sheet(source="https://example.org/a.zip", checkpoint="here.pth")
    _, text = doctor(capsys)
    assert "ok      checkpoint here.pth" in text
    assert "note    data: not prepared yet; the workflow does it" in text
    assert "fix: cae-seg prepare data --source https://example.org/a.zip --root data" in text


def test_the_doctor_compares_the_free_space_with_the_runs_to_come(folder, capsys, monkeypatch):
    write_sheet()
    free = type("Usage", (), {"free": 9_000_000_000})
    monkeypatch.setattr("shutil.disk_usage", lambda path: free)
    assert "MISSING disk: 9.0 GB free, about 9.6 GB needed" in doctor(capsys)[1]
    make_run(folder / "results/row/seed_0", "row")
    assert "ok      disk: 9.0 GB free, about 8.9 GB needed" in doctor(capsys)[1]


def test_the_doctor_reports_a_server_that_does_not_answer(folder, capsys, monkeypatch):
    write_sheet()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert "note    MLflow: the server does not answer (ConnectionError)" in doctor(capsys)[1]


@pytest.fixture
def results(folder) -> Path:
    """A finished run with states left, a run that failed, and files of earlier starts."""
    finished = make_run(folder / "results/row/seed_0", "row")
    (finished / "work/checkpoints").mkdir()
    (finished / "work/checkpoints/iter_100.pth").write_bytes(b"x" * 2_000_000)
    stale = folder / "results/row/seed_0/work.stale-12345678"
    stale.mkdir()
    (stale / "run_metadata.json").write_text("{}")
    failed = folder / "results/row/seed_1/work"
    (failed / "checkpoints").mkdir(parents=True)
    (failed / "run_metadata.json").write_text(json.dumps({"identity": "b"}))
    (failed / "checkpoints/iter_50.pth").write_bytes(b"x")
    (failed / "checkpoints/iter_60.damaged").write_bytes(b"x")
    (folder / ".snakemake/log").mkdir(parents=True)
    return folder / "results"


def test_clean_lists_sizes_and_removes_nothing_by_default(results, capsys):
    before = sorted(results.rglob("*"))
    assert main(["clean"]) == 0
    text = capsys.readouterr().out
    assert "2.0 MB  results/row/seed_0/work/checkpoints  (resumable states of a finished" in text
    assert "work.stale-12345678" in text
    assert "iter_60.damaged" in text
    assert "iter_50" not in text
    assert "nothing was removed, add --delete" in text
    assert sorted(results.rglob("*")) == before


def test_clean_keeps_results_and_what_a_run_resumes_from(results, capsys):
    augmented = results / "row/seed_0/metrics_aug_test.json"
    augmented.write_text("{}")
    assert main(["clean", "--delete"]) == 0
    assert augmented.is_file()
    assert not (results / "row/seed_0/work/checkpoints").exists()
    assert not (results / "row/seed_0/work.stale-12345678").exists()
    assert (results / "row/seed_0/run.json").is_file()
    assert (results / "row/seed_0/work/metrics.jsonl").is_file()
    kept = [path.name for path in (results / "row/seed_1/work/checkpoints").iterdir()]
    assert kept == ["iter_50.pth"]
    assert main(["clean"]) == 0
    assert "0.0 MB in all; nothing was removed\n" in capsys.readouterr().out


def test_clean_leaves_a_run_alone_that_is_being_trained(results, capsys):
    lock = FileLock(results / "row/seed_0/work/writer.lock")
    assert lock.acquire()
    main(["clean", "--delete"])
    lock.release()
    assert (results / "row/seed_0/work/checkpoints/iter_100.pth").is_file()


@pytest.mark.parametrize(
    ("arguments", "suggestion"),
    [
        (["trian"], "nearest: train"),
        (["prepare", "date"], "nearest: data"),
        (["table", "--sheets", "x.yaml"], "unrecognised '--sheets'; nearest: --sheet"),
        (["table", "--partail"], "nearest: --partial"),
    ],
)
def test_the_nearest_command_or_option_is_named(arguments, suggestion, capsys):
    assert main(arguments) == 2
    assert suggestion in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "completions"), [("cae-seg tr", "train track"), ("cae-seg ui --p", "--port")]
)
def test_bash_completes_commands_and_options(tmp_path, capsys, words, completions):
    assert main(["completion", "bash"]) == 0
    (tmp_path / "completion.sh").write_text(capsys.readouterr().out)
    code = (
        f"source ./completion.sh; COMP_WORDS=({words}); COMP_CWORD={words.count(' ')}; "
        "$(complete -p cae-seg | sed 's/.*-F \\([^ ]*\\).*/\\1/'); echo ${COMPREPLY[@]}"
    )
    done = subprocess.run(["bash", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.split() == completions.split(), done.stderr

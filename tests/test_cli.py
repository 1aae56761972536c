"""The console script as a person meets it."""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cae_seg.cli import build_parser, main
from cae_seg.engine.job import EvaluateJob, TrainJob, job_of

COMMANDS = [
    *("prepare", "train", "evaluate", "predict", "track", "table"),
    *("doctor", "clean", "init", "completion"),
]


def run(*arguments: str, **kwargs) -> subprocess.CompletedProcess:
    return subprocess.run(["cae-seg", *arguments], capture_output=True, text=True, **kwargs)


def test_help_names_every_command_of_the_public_face() -> None:
    text = run("--help").stdout
    assert all(command in text for command in COMMANDS)


@pytest.mark.parametrize("command", [[c] for c in COMMANDS] + [["prepare", "data"]])
def test_each_command_has_help(command: list[str]) -> None:
    answer = run(*command, "--help")
    assert answer.returncode == 0
    assert "usage: cae-seg" in answer.stdout


def test_help_does_not_load_torch_or_anything_heavy() -> None:
    code = (
        "import sys, cae_seg.cli\n"
        "try: cae_seg.cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'mmengine', 'mmseg', 'mlflow', 'pandas', 'numpy', 'matplotlib'}\n"
        "sys.exit(bool(heavy & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_a_mistake_is_one_line_and_status_2(tmp_path) -> None:
    answer = run("prepare", "data", "--source", str(tmp_path / "absent.zip"), cwd=tmp_path)
    assert answer.returncode == 2
    assert len(answer.stderr.strip().splitlines()) == 1
    assert "absent.zip" in answer.stderr
    written = [path for path in tmp_path.rglob("*.json") if path.name != ".prepare.lock.json"]
    assert written == []


@pytest.mark.parametrize("content", ["", "{}", '{"runs": [{}]}', '{"runs": 5}', "x: 1"])
def test_a_file_that_is_no_report_of_runs_is_named_and_kept(content: str, tmp_path) -> None:
    (tmp_path / "report.json").write_text(content)
    answer = run(
        *("collect-run", "work", "--report", "report.json", "--out", "run.json"), cwd=tmp_path
    )
    assert answer.returncode == 2
    assert answer.stderr.startswith("cae-seg: error: report.json: ")
    assert (tmp_path / "report.json").read_text() == content
    assert not (tmp_path / "run.json").exists()


@pytest.mark.parametrize("report", ["", "folder"])
def test_a_report_of_runs_is_a_file(report: str, tmp_path) -> None:
    (tmp_path / "folder").mkdir()
    answer = run("collect-run", "work", "--report", report, "--out", "run.json", cwd=tmp_path)
    assert answer.returncode == 2
    assert "is not a regular file" in answer.stderr


def test_a_failed_run_leaves_the_report_to_the_others(tmp_path) -> None:
    report = {"runs": [{"work_dir": "work", "identity": None, "error": "the loss is NaN"}]}
    (tmp_path / "report.json").write_text(json.dumps(report))
    answer = run(
        *("collect-run", "work", "--report", "report.json", "--out", "run.json"), cwd=tmp_path
    )
    assert answer.returncode == 2
    assert "the loss is NaN" in answer.stderr
    assert (tmp_path / "report.json").exists()


def test_an_option_without_value_is_named() -> None:
    answer = run("train", "x.py", "--work-dir", "w", "--options", "model.pretrained")
    assert answer.returncode == 2
    assert "model.pretrained: write KEY=VALUE" in answer.stderr


WRONG_NUMBERS = [
    ("train", "--gpus", ["0", "-1", "1.5", "1_0", "x", "", "9" * 30, "٣"]),
    ("train", "--nodes", ["0", "-1"]),
    ("train", "--workers", ["-1", "100000"]),
    ("train", "--seed", ["-1", "4294967296", "1e3"]),
    ("train", "--images-per-gpu", ["0"]),
    ("train", "--time-budget", ["0", "-1", "nan", "inf", "x"]),
    ("train", "--lock-wait", ["-1", "nan"]),
    ("train", "--iterations", ["0", "-5", "x"]),
    ("train", "--batch-size", ["0", "-1", "1.5"]),
    ("train", "--attempt", ["0", "x"]),
    ("evaluate", "--gpus", ["0"]),
    ("ui", "--port", ["0", "65536", "x"]),
]


@pytest.mark.parametrize(
    ("command", "option", "value"), [(c, o, v) for c, o, values in WRONG_NUMBERS for v in values]
)
def test_numbers_out_of_range_are_one_line(command, option, value, capsys) -> None:
    assert main([command, f"{option}={value}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"cae-seg: error: argument {option}: ")


@pytest.mark.parametrize("kind", [TrainJob, EvaluateJob])
def test_every_option_is_a_field_of_the_job_and_reaches_it(kind, tmp_path) -> None:
    values = {
        "config": "c.py", "weights": "w.pth", "data": "m.json", "gpus": 2, "nodes": 3,
        "device": "cpu", "workers": 4, "name": "row", "seed": 5, "cfg_options": {"a.b": 1},
        "work_dir": str(tmp_path), "out": str(tmp_path / "o.json"), "pretrained": "p.pth",
        "learning_rate": "1e-4", "precision": "bf16", "deterministic": True, "images_per_gpu": 6,
        "time_budget": 7.5, "lock_wait": 8.5, "iterations": 9, "batch_size": 10,
        "crop_size": (11, 12), "aug_test": True, "show_dir": str(tmp_path),
    }  # fmt: skip
    names = [field.name for field in dataclasses.fields(kind)]
    words = []
    for name in names:
        option, value = f"--{name.replace('_', '-')}", values[name]
        if name in ("config", "weights"):
            words.insert(int(name == "weights"), value)
        elif name == "cfg_options":
            words += [option, "a.b=1"]
        elif name == "crop_size":
            words += [option, "11", "12"]
        else:
            words += [option] if value is True else [f"{option}={value}"]
    command = "train" if kind is TrainJob else "evaluate"
    options = build_parser().parse_args([command, *words])
    job = job_of(kind, options)
    assert {name: getattr(job, name) for name in names} == {
        name: Path(values[name]) if isinstance(getattr(job, name), Path) else values[name]
        for name in names
    }
    beyond_the_job = {"run", "parser", "attempt", "error_file", "sheet", "eval"}
    beyond_the_job |= {"next", "keep_going", "report"}
    assert set(vars(options)) - set(names) <= beyond_the_job


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--options", "optim_wrapper.optimizer.lr=1"],
            "optimizer.lr: only training",
        ),
        (["--options", "model.pretrained=x.pth"], "model.pretrained: only training reads it"),
        (
            ["--options", "model.backbone.init_cfg.checkpoint=x"],
            "checkpoint: only training",
        ),
        (["--options", "precision=fp16"], "precision: only training reads it"),
        (["--nodes=2", "--device=cpu"], "--nodes 2: needs a SLURM job of so many nodes"),
        (["--learning-rate=1"], "unrecognised '--learning-rate=1'"),
        (["--iterations=1"], "unrecognised '--iterations=1'"),
    ],
)
def test_evaluate_refuses_what_it_would_not_use(options, message, tmp_path, capsys) -> None:
    weights = tmp_path / "w.pth"
    weights.touch()
    config = "upernet_cae_base_12_512_slide_160k_ade20k_pt_1e-4"
    assert main(["evaluate", config, str(weights), *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


OUTPUTS = [
    ["predict", "w.pth", "images", "--out"],
    ["train", "c.py", "--work-dir"],
    ["train", "c.py", "--work-dir", "w", "--out"],
    ["evaluate", "c.py", "w.pth", "--out"],
    ["evaluate", "c.py", "w.pth", "--show-dir"],
    ["aggregate-seeds", "m.json", "--out"],
    ["track", "run", "--out"],
    ["table", "--out"],
    ["table", "--csv"],
    ["table", "--pages"],
    ["figures", "--out"],
    ["figures", "--out", "f", "--claim"],
    ["prepare", "checkpoint", "c.pth", "--config", "c.py", "--out"],
    ["prepare", "data", "--source", "a.zip", "--manifest"],
    ["prepare", "demo", "--checkpoints", "c", "--archive"],
]


@pytest.mark.parametrize("arguments", OUTPUTS, ids=" ".join)
def test_an_output_that_cannot_be_written_is_refused_before_the_work(
    arguments, tmp_path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("mine")
    for target in ("file/below", "x" * 300, ""):
        assert main([*arguments, target]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"cae-seg: error: argument {arguments[-1]}: ")
    assert Path("file").read_text() == "mine"
    assert os.listdir() == ["file"]


@pytest.mark.parametrize("target", ["folder", "/dev/null", "pipe"])
def test_a_result_replaces_regular_files_only(target, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    os.mkfifo("pipe")
    assert main(["table", "--out", target]) == 2
    assert f"{target}: is " in capsys.readouterr().err


def test_an_unforeseen_error_is_one_line_with_the_path_of_its_traceback(
    tmp_path, monkeypatch, capsys
) -> None:
    def fail(*_, **__):
        raise ZeroDivisionError("see https://me:s3cret@example.org/x\nsecond line")

    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setattr("cae_seg.doctor.report", fail)
    assert main(["doctor"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    (log,) = tmp_path.rglob("*.log")
    assert line == (
        "cae-seg: error: unexpected error: ZeroDivisionError: see https://***@example.org/x; "
        f"traceback in {log}"
    )
    assert "in fail" in log.read_text()
    assert "s3cret" not in log.read_text()
    assert log.stat().st_mode & 0o077 == 0


def test_an_exit_inside_a_command_is_an_error(monkeypatch, tmp_path, capsys) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setattr("cae_seg.doctor.report", lambda *_: sys.exit(0))
    assert main(["doctor"]) == 1
    assert "SystemExit" in capsys.readouterr().err


def test_a_name_that_is_not_utf_8_is_reported_escaped(tmp_path) -> None:
    answer = run("prepare", "data", "--source", os.fsdecode(b"w\xff\n.zip"), cwd=tmp_path)
    assert answer.returncode == 2
    assert len(answer.stderr.splitlines()) == 1
    assert "w\\udcff\\n.zip: no such archive" in answer.stderr


@pytest.mark.parametrize("value", ["a=[1,(", "a=[", "a=(", "a=[1)", "a=]", "=", "a=[[]"])
def test_malformed_config_options_are_one_line(value, tmp_path, capsys) -> None:
    code = main(["train", "x.py", "--work-dir", str(tmp_path), "--cfg-options", value])
    assert code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def numeric_options(parser: argparse.ArgumentParser, path: tuple[str, ...] = ()) -> list[tuple]:
    """Return the words, option and type of every numeric option of every command."""
    found = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, inner in action.choices.items():
                found += numeric_options(inner, (*path, name))
        elif action.type in (int, float) or getattr(action.type, "__qualname__", "").startswith(
            ("whole_number", "number")
        ):
            found.append((path, action.option_strings[-1], action.type))
    return found


NUMERIC = numeric_options(build_parser())


def test_numeric_options_are_found() -> None:
    options = {option for _, option, _ in NUMERIC}
    assert {"--gpus", "--seed", "--port", "--watch", "--attempt", "--iterations"} <= options


@pytest.mark.parametrize(("path", "option", "kind"), NUMERIC, ids=lambda value: str(value)[:30])
def test_every_numeric_option_refuses_what_is_no_number_of_its_range(path, option, kind) -> None:
    for text in ("", " ", "x", "nan", "inf", "-inf", "-1", "1e999", "9" * 400, "1,5", "0x10", "1j"):
        with pytest.raises(argparse.ArgumentTypeError, match="is no "):
            kind(text)


def test_a_name_that_is_too_long_for_the_file_system_is_one_line(tmp_path, capsys) -> None:
    row = "name: a, backbone: ViT-B, pretraining_epochs: 1, checkpoint: c.pth, learning_rate: 1e-4"
    (tmp_path / "recipe.py").touch()
    sheet = tmp_path / "sheet.yaml"
    config = tmp_path / "recipe.py"
    sheet.write_text(f"results: r{'9' * 300}\nexperiments: [{{{row}, config: {config}}}]\n")
    assert main(["table", "--partial", "--sheet", str(sheet)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "File name too long" in line

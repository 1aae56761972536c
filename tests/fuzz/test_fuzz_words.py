"""Sheets and command lines: whatever is written, one line and no harm."""

import argparse
import os
from pathlib import Path

import pytest
import yaml
from fuzz.harness import (
    explore,
    json_values,
    mutated_bytes,
    mutated_json,
    run,
    sandbox,
)
from hypothesis import strategies as st

from cae_seg.cli import build_parser
from cae_seg.sheet.schema import SheetFile

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
SHEETS = sorted((ROOT / "config").glob("*.yaml"))


@pytest.mark.parametrize("sheet", SHEETS, ids=lambda path: path.stem)
def test_mutated_sheets(sheet):
    content = sheet.read_bytes()
    values = mutated_json(yaml.safe_load(content)).map(
        lambda value: yaml.safe_dump(value, allow_unicode=True).encode(errors="surrogatepass")
    )

    def check(text):
        with sandbox() as folder:
            os.symlink(ROOT / "configs_local", folder / "configs_local")
            Path("sheet.yaml").write_bytes(text)
            run("table", "--sheet", "sheet.yaml", "--partial")

    explore(check, mutated_bytes(content) | values)


def sheets_from_schema() -> st.SearchStrategy[dict]:
    """Draw mappings with the keys of the schema and values of any kind."""
    schema = SheetFile.model_json_schema()
    row = sorted(schema["$defs"]["Experiment"]["properties"])
    words = st.sampled_from(
        ["ViT-B", "1e-4", "a", "cpu", 300, 0, [0, 1], "$(x)", "<x>", "{y}", "-"]
    )
    value = words | json_values
    rows = st.lists(st.dictionaries(st.sampled_from(row), value, max_size=8), max_size=3)
    keys = dict.fromkeys(schema["properties"], value) | {"experiments": rows | value}
    return st.fixed_dictionaries({}, optional=keys)


def test_sheets_from_the_schema():
    def check(content):
        with sandbox() as folder:
            os.symlink(ROOT / "configs_local", folder / "configs_local")
            text = yaml.safe_dump(content, allow_unicode=True)
            Path("sheet.yaml").write_bytes(text.encode(errors="surrogatepass"))
            run("table", "--sheet", "sheet.yaml", "--partial")

    explore(check, sheets_from_schema())


# `--watch` and `--follow` wait for a person.
UNTRIED = {"--watch", "--follow", "--version"}
# No path that leaves the folder: `clean` removes, `init` and `prepare demo` write at any path.
characters = st.characters(exclude_characters="\0/", exclude_categories=["Cs"])
words = st.text(characters, max_size=12).filter(lambda word: word != "..")
values = words | st.sampled_from(
    [
        "",
        "-1",
        "0",
        "1",
        "1e-4",
        "nan",
        "9" * 30,
        "a=b",
        "a=[1,(",
        "folder",
        "empty.py",
        "empty.json",
        "pipe",
        "missing/x",
        "x" * 300,
        "\udcff",
        "http://[::1",
        "https://u:p@h:99999/x",
        "sheet.yaml",
        "model.backbone.depth=x",
        "train_cfg=5",
        "--",
        "--help",
        "-h",
    ]
)


def parsers(parser: argparse.ArgumentParser, path: tuple[str, ...] = ()) -> dict:
    """Return the parsers of all commands by their words."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return {
                words: found
                for name, inner in action.choices.items()
                if name not in UNTRIED
                for words, found in parsers(inner, (*path, name)).items()
            }
    return {path: parser}


@st.composite
def command_lines(draw: st.DrawFn) -> list[str]:
    """Draw a command with any of its options and any values."""
    commands = parsers(build_parser())
    path = draw(st.sampled_from(sorted(commands)))
    line = list(path)
    for action in commands[path]._actions:
        if action.option_strings and not (action.required or draw(st.integers(0, 3)) == 0):
            continue
        if UNTRIED & set(action.option_strings):
            continue
        if action.option_strings:
            line.append(draw(st.sampled_from(action.option_strings)))
        if action.nargs != 0:
            line += draw(st.lists(values, min_size=1, max_size=2))[
                : 1 if action.nargs is None else 2
            ]
    return line


def test_command_lines_from_the_parser():
    def check(line):
        with sandbox(), pytest.MonkeyPatch.context() as patch:
            if line[0] == "ui":  # no UI is started for a server, whatever the arguments
                patch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
            Path("folder").mkdir()
            for name in ("empty.py", "empty.json", "sheet.yaml"):
                Path(name).touch()
            os.mkfifo("pipe")
            run(*line, unhealthy=line[0] == "doctor")

    explore(check, command_lines())

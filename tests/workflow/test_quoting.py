"""No value of a sheet reaches a shell unquoted; unusual but harmless names simply work."""

import itertools
import json
import re
from pathlib import Path

import pytest
import yaml
from checkouts import ROOT, Checkout

from cae_seg.errors import UserError
from cae_seg.sheet.reading import load_sheet
from cae_seg.sheet.schema import RESERVED_NAMES
from cae_seg.sheet.values import EXPANDED

HOSTILE = [
    "$(touch pwned)",
    "`touch pwned`",
    "a;touch pwned;",
    "a && touch pwned",
    'it\'s "quoted"',
    "my checkpoint (300)",
    "{x} {input} {{y}}",
    "-rf",
    "--help",
    "Größe 模型",
    "a > b * [c] # d \\ e",
]
FOLDER = "my results (1), ä"
ROW = {"backbone": "ViT-B", "pretraining_epochs": 300, "learning_rate": "1e-4"}


def shell_text(file: Path) -> str:
    """Return the text of all shell directives of a file of rules."""
    return "\n".join(re.findall(r"^    shell:\n((?: {8}.*\n)+)", file.read_text(), re.MULTILINE))


@pytest.mark.parametrize(
    "file", sorted((ROOT / "workflow/rules").glob("*.smk")), ids=lambda f: f.stem
)
def test_every_value_in_a_shell_command_is_quoted(file):
    fields = re.findall(r"\{[^}]*\}", shell_text(file))
    assert [field for field in fields if not field.endswith(":q}")] == []


def test_the_check_for_quotes_reads_every_rule():
    text = "".join(shell_text(file) for file in (ROOT / "workflow/rules").glob("*.smk"))
    assert text.count("cae-seg ") == 9
    assert text.count("{") > 50


@pytest.fixture(scope="module")
def calls(tmp_path_factory) -> dict[str, list[list[str]]]:
    """Run a sheet full of hostile names with the stand-in; return its arguments by command."""
    folder = tmp_path_factory.mktemp("parent") / "clone of (mine) é"
    folder.mkdir()
    copy = Checkout(folder)
    sheet = write_sheet(folder)
    copy.run(
        "report.html", "--cores", "2", "--config", f"sheet={sheet}",
        STUB_CALLS=str(folder / "calls.txt"), CUDA_VISIBLE_DEVICES="",
    )  # fmt: skip
    assert not [*folder.parent.rglob("pwned")]
    text = (folder / "calls.txt").read_bytes().decode()
    found: dict[str, list[list[str]]] = {}
    for call in text.split("\0\x1e\0")[:-1]:
        arguments = call.split("\0")
        found.setdefault(arguments[0], []).append(arguments)
    return found


OPTION = "val_dataloader.dataset.img_suffix"  # a key that takes any text


def write_sheet(folder: Path) -> str:
    """Write a sheet whose rows have hostile checkpoints, configs, options and labels."""
    recipe = "configs_local/cae/upernet/upernet_cae_base_12_512_slide_160k_ade20k.py"
    rows = []
    for number, text in enumerate(HOSTILE):
        checkpoint, config = f"{text}.pth", f"{text}.py"
        usable = not set(text) & EXPANDED
        if usable:
            (folder / checkpoint).write_text("weights")
            (folder / config).write_text(f"_base_ = {recipe!r}\n")
        rows.append(
            ROW
            | {
                "name": f"row{number}",
                "checkpoint": checkpoint if usable else f"https://example.org/{number}?{text}",
                **({"config": config} if usable else {}),
                "method": text,
                "options": {OPTION: text},
                "resources": {"slurm_partition": text, "constraint": text},
            }
        )
    archive = "the archive (1) $(touch pwned).zip"
    (folder / archive).write_text("archive")
    sheet = "config/a sheet (2) $(touch pwned); é.yaml"
    content = {
        "results": f"results/{FOLDER}",
        "data": {"source": archive, "root": f"data/{FOLDER}"},
        "experiments": rows,
    }
    (folder / sheet).write_text(yaml.safe_dump(content, allow_unicode=True))
    return sheet


def values(calls: dict[str, list[list[str]]], command: str, option: str) -> set[str]:
    """Return the values that a command got for an option, over all its calls."""
    arguments = itertools.chain.from_iterable(calls[command])
    return {a.removeprefix(option + "=") for a in arguments if a.startswith(option + "=")}


def test_checkpoints_and_configs_arrive_as_they_are_written(calls):
    usable = [text for text in HOSTILE if not set(text) & EXPANDED]
    assert {f"{text}.pth" for text in usable} <= {call[-1] for call in calls["prepare"]}
    assert {f"{text}.py" for text in usable} <= {call[-1] for call in calls["train"]}
    assert all(call[-2] == "--" for call in calls["train"])


def test_a_url_arrives_as_it_is_written(calls):
    assert "https://example.org/10?a > b * [c] # d \\ e" in {c[-1] for c in calls["prepare"]}


def test_options_of_the_config_arrive_as_they_are_written(calls):
    expected = {f"{OPTION}={text}" for text in HOSTILE}
    assert values(calls, "train", "--cfg-options") == expected


def test_data_sheet_and_results_arrive_as_they_are_written(calls):
    assert "--source=the archive (1) $(touch pwned).zip" in [a for c in calls["prepare"] for a in c]
    assert values(calls, "train", "--data") == {f"data/{FOLDER}/manifest.json"}
    assert values(calls, "table", "--out") == {f"results/{FOLDER}/table.md"}
    sheet = "config/a sheet (2) $(touch pwned); é.yaml"
    for command in ("train", "track", "table", "figures"):
        assert values(calls, command, "--sheet") == {sheet}


def test_every_command_was_called(calls):
    rows = len(HOSTILE)
    counts = {command: len(found) for command, found in calls.items()}
    assert counts == {
        "prepare": rows + 1, "train": rows, "evaluate": rows, "aggregate-seeds": rows,
        "track": rows,
        "table": 1, "figures": 1,
    }  # fmt: skip


def load(tmp_path: Path, **changes) -> None:
    path = tmp_path / "sheet.yaml"
    row = ROW | {"name": "a", "checkpoint": "c.pth"}
    content = {"experiments": [row | changes.pop("row", {})]} | changes
    path.write_text(json.dumps(content, ensure_ascii=False))
    load_sheet(path, root=ROOT)


@pytest.mark.parametrize(
    "text", ["$(x)", "`x`", "a;b", "a\nb", "a'b", 'a"b', "{x}", "<x>", "-x", "a\\b", "*"]
)
@pytest.mark.parametrize("key", ["results", "root"])
def test_folders_that_a_shell_could_misread_are_refused(key, text, tmp_path):
    changes = {"results": text} if key == "results" else {"data": {"root": text}}
    with pytest.raises(UserError, match=rf"sheet\.yaml:1: .*{key}: "):
        load(tmp_path, **changes)


CONTROL = {
    "name": "a\nb",
    "checkpoint": "a\nb.pth",
    "config": "a\x1b[31mb.py",
    "method": "a\rb",
    "options": {"x": "a\nb"},
    "resources": {"slurm_partition": "a\nb"},
}


@pytest.mark.parametrize("key", CONTROL)
def test_control_characters_are_refused_with_the_key(key, tmp_path):
    with pytest.raises(UserError, match=rf"experiment 'a.*{key}") as caught:
        load(tmp_path, row={key: CONTROL[key]})
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "text", ["--x=$(touch pwned)", "--x;touch pwned", "--x=`y`", "'--x", "a\nb"]
)
def test_sbatch_options_with_shell_syntax_are_refused(text, tmp_path):
    with pytest.raises(UserError, match="slurm_extra"):
        load(tmp_path, row={"resources": {"slurm_extra": text}})


@pytest.mark.parametrize("key", ["-x", "a b", "$(x)", "a=b", "--help"])
def test_option_keys_are_names(key, tmp_path):
    with pytest.raises(UserError, match="options"):
        load(tmp_path, row={"options": {key: "1"}})


def test_the_names_of_our_results_are_reserved(tmp_path):
    """Whatever a rule writes directly into the results folder cannot be the name of a row."""
    rules = "".join(file.read_text() for file in (ROOT / "workflow/rules").glob("*.smk"))
    ours = set(re.findall(r"<results>/([\w.]+)[/\"]", rules)) - {"seed"}
    assert {"logs", "table.md", "pages", "claim.json", "benchmarks"} <= ours
    assert ours <= RESERVED_NAMES, load_sheet
    for name in ("table.md", "Pages", "mlflow.db"):
        with pytest.raises(UserError, match="is a file or folder of the results"):
            load(tmp_path, row={"name": name})

"""Sheets that are broken, too large, or written in YAML 1.1: one line with the place."""

import os
from pathlib import Path

import pytest

from cae_seg.errors import UserError
from cae_seg.sheet.reading import Sheet, load_sheet

ROOT = Path(__file__).parents[2]
ROW = (
    "experiments:\n  - name: a\n    backbone: ViT-B\n    pretraining_epochs: 300\n"
    "    checkpoint: c.pth\n    learning_rate: 1e-4\n"
)


def load(tmp_path: Path, text: str | bytes) -> Sheet:
    path = tmp_path / "sheet.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return load_sheet(path, root=ROOT)


def refused(tmp_path: Path, text: str | bytes, match: str) -> None:
    with pytest.raises(UserError, match=match) as caught:
        load(tmp_path, text)
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 1000
    assert "sheet.yaml" in message


NOT_A_NUMBER = [
    "0300",
    "5:00",
    "yes",
    "1_000",
    "0x12",
    "0o17",
    "1e3",
    '"300"',
    "3.0",
    "true",
    "~",
    "٣",
]


@pytest.mark.parametrize("value", NOT_A_NUMBER)
@pytest.mark.parametrize("key", ["pretraining_epochs", "gpus", "nodes", "seeds"])
def test_only_plain_digits_are_a_whole_number(tmp_path, key, value):
    text = ROW.replace("pretraining_epochs: 300", f"{key}: {value}")
    refused(tmp_path, text, rf":\d+: experiment 'a': {key}")


@pytest.mark.parametrize(
    "value", ["1_000", "0x1p3", "5:00", "yes", "nan", ".inf", "1e999", "-1", "0"]
)
def test_a_learning_rate_is_written_in_digits(tmp_path, value):
    refused(tmp_path, ROW.replace("1e-4", value), r":6: .*learning_rate: .* is no learning rate")


@pytest.mark.parametrize("value", ["yes", "on", "1", "y", '"true"'])
def test_only_true_and_false_are_booleans(tmp_path, value):
    refused(tmp_path, ROW + f"    deterministic: {value}\n", r":7: .*deterministic")


@pytest.mark.parametrize("value", ["101", "-1", "48,1", "yes", "4_8"])
def test_a_published_score_is_a_percentage(tmp_path, value):
    refused(tmp_path, ROW + f"    published_miou: {value}\n", r":7: .*published_miou")


def test_numbers_are_read_as_they_are_written(tmp_path):
    text = ROW + "    published_miou: 48.1\n    seeds: [0, 12]\n    options: {a: 0300, b: yes}\n"
    (row,) = load(tmp_path, text).experiments
    assert (row.published_miou, row.seeds, row.learning_rate) == (48.1, (0, 12), "1e-4")
    assert row.options == {"a": "0300", "b": "yes"}


BROKEN = {
    "alias bomb": (
        "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
        + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12)),
        r":7: .*more than \d+ values, aliases expanded",
    ),
    "recursive alias": ("a: &a [*a]\n", r":1: .*refers to itself"),
    "unknown alias": ("a: *b\n", r":1: .*undefined alias"),
    "deep": ("a: " + "[" * 200_000, r":1: .*levels deep"),
    "long value": ("a: " + "x" * 20_000, r":1: .*longer than"),
    "key that is a list": ("? [a, b]\n: c\n", r":1: .*a key is no text"),
    "tag of Python": ("a: !!python/object/apply:os.system [ls]\n", r":1: "),
    "tag that does not fit": ("a: !!int abc\n", r":1: .*tag does not fit"),
    "set": (ROW.replace("c.pth", "!!set {a, b}"), r":5: .*checkpoint"),
    "two documents": ("a: 1\n---\nb: 2\n", r":2: "),
    "control character": ("a: 1\nb: \x01\n", r":2: .*does not allow"),
    "not UTF-8": (b"a: \xff\xfe\n", r"not UTF-8"),
    "UTF-16": ("a: 1\n".encode("utf-16"), r"not UTF-8"),
    "list": ("- a\n- b\n", r"must be a mapping"),
    "number": ("12", r"must be a mapping"),
    "rows that are text": ("experiments: abc\n", r":1: .*experiments"),
    "rows of numbers": ("experiments: [1, 2]\n", r":1: .*experiments"),
    "defaults that are a list": ("defaults: [1]\n" + ROW, r":1: .*defaults"),
    "long name": (ROW.replace("name: a", "name: " + "a" * 101), r":2: .*name"),
    "too many rows": (
        "grid:\n  backbone: ViT-B\n  checkpoint: c.pth\n  pretraining_epochs: ["
        + ", ".join(map(str, range(400)))
        + "]\n  learning_rate: ["
        + ", ".join(f"{n}e-5" for n in range(1, 301))
        + "]\n",
        r":1: expands to 120000 runs",
    ),
    "format in a pattern": (
        "grid:\n  backbone: ViT-B\n  checkpoint: 'c{epochs:>999999999}.pth'\n"
        "  pretraining_epochs: 1\n  learning_rate: 1e-4\n",
        r":1: grid: the pattern",
    ),
    "attribute in a pattern": (
        "grid:\n  backbone: ViT-B\n  checkpoint: 'c{epochs.__class__}.pth'\n"
        "  pretraining_epochs: 1\n  learning_rate: 1e-4\n",
        r":1: grid: the pattern",
    ),
    "row of a grid": (
        "results: r\ngrid:\n  backbone: ViT-B\n  checkpoint: 'http://[::1/c.pth'\n"
        "  pretraining_epochs: 1\n  learning_rate: 1e-4\n",
        r":2: grid: its row 'vit_b_1ep_lr1e-4': checkpoint: .*not a valid address",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_sheet_is_one_line_with_its_place(tmp_path, kind):
    refused(tmp_path, *BROKEN[kind])


URLS = {
    "http://[::1/c.pth": "not a valid address",
    "http://host:99999/c.pth": "not a valid address",
    "http://host:0/c.pth": "not a valid address",
    "http://:80/c.pth": "not a valid address",
    "https://": "not a valid address",
    "https://me:s3cret@host/c.pth": "user name or password",
    "https://host/c.pth?token=s3cret": "the secret 'token'",
    "https://host/c.pth?X-Amz-Signature=s3cret": "the secret 'X-Amz-Signature'",
    "https://host/c.pth?a=1&sig=s3cret": "the secret 'sig'",
}


@pytest.mark.parametrize("url", URLS)
def test_an_invalid_url_or_one_with_a_secret_is_refused(tmp_path, url):
    text = ROW.replace("c.pth", f'"{url}"')
    with pytest.raises(UserError, match=f"checkpoint: .*{URLS[url]}") as caught:
        load(tmp_path, text)
    assert "s3cret" not in str(caught.value)


def test_a_url_may_refer_to_a_secret(tmp_path):
    url = "https://host/c.pth?token=${TOKEN}&x=1"
    assert load(tmp_path, ROW.replace("c.pth", f'"{url}"')).experiments[0].checkpoint == url


@pytest.mark.parametrize("kind", ["folder", "pipe", "long name"])
def test_a_sheet_that_is_no_file_is_refused_at_once(tmp_path, kind):
    path = tmp_path / ("x" * 300 if kind == "long name" else "sheet.yaml")
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    with pytest.raises(UserError, match=r"not a regular file|cannot be read"):
        load_sheet(path)

"""Checkpoints: any single flipped bit is harmless or noticed."""

import random
import zipfile

import pytest
import torch

from cae_seg.errors import UserError
from cae_seg.run.checkpoints import Checkpoints, load_state, save_checked, verify
from cae_seg.run.metrics_log import MetricsLogger

FLIPS = 3000


def state() -> dict:
    """Return a state of about 32 kB of all kinds of values that a run saves."""
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    return {
        "meta": {"iteration": 7, "identity": "abc", "seed": 0},
        "state_dict": {f"layer{i}.weight": draw(16, 16) for i in range(12)},
        "optimizer": {"state": {i: {"exp_avg": draw(16, 16)} for i in range(12)}, "lr": 1e-3},
        "counts": torch.arange(100),
    }


def same(left, right) -> bool:
    if isinstance(left, torch.Tensor):
        return isinstance(right, torch.Tensor) and torch.equal(left, right)
    if isinstance(left, dict):
        pairs = isinstance(right, dict) and list(left) == list(right)
        return pairs and all(same(left[key], right[key]) for key in left)
    return type(left) is type(right) and left == right


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "iter_7.pth"
    with path.open("w+b") as stream:
        save_checked(state(), stream)
    return path


def header_bytes(path) -> list[int]:
    """Return the positions of all bytes that belong to no record's content."""
    data = path.read_bytes()
    content = set()
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            lengths = data[entry.header_offset + 26 : entry.header_offset + 30]
            name, extra = (int.from_bytes(lengths[i : i + 2], "little") for i in (0, 2))
            begin = entry.header_offset + 30 + name + extra
            content.update(range(begin, begin + entry.compress_size))
    return sorted(set(range(len(data))) - content)


def test_a_checkpoint_is_an_ordinary_file_of_torch(path):
    verify(path)
    assert same(torch.load(path, weights_only=True), state())
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None


def test_a_checkpoint_with_a_flipped_bit_loads_unchanged_or_is_refused(path):
    whole, expected = path.read_bytes(), state()
    assert 25_000 < len(whole) < 60_000
    headers, chance = header_bytes(path), random.Random(0)
    refused = 0
    for flip in range(FLIPS):
        position = chance.choice(headers) if flip % 2 else chance.randrange(len(whole))
        damaged = bytearray(whole)
        damaged[position] ^= 1 << chance.randrange(8)
        path.write_bytes(damaged)
        try:
            verify(path)
        except UserError:
            refused += 1
        else:
            assert same(load_state(path), expected), position
    assert refused > FLIPS // 2


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "folder", "text"])
def test_a_damaged_checkpoint_is_given_up_for_the_one_before(tmp_path, damage):
    checkpoints = Checkpoints(tmp_path / "checkpoints", MetricsLogger(None))
    for iteration in (10, 20):
        checkpoints.save(iteration, state())
    newest = tmp_path / "checkpoints/iter_20.pth"
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 4
    newest.unlink()
    if damage == "folder":
        newest.mkdir()
    else:
        content = {"flipped": data, "cut": data[:-40], "empty": b"", "text": b"not a checkpoint"}
        newest.write_bytes(content[damage])
    assert checkpoints.newest() == tmp_path / "checkpoints/iter_10.pth"
    assert same(load_state(checkpoints.newest()), state())

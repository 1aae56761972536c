"""Tensors that cannot be weights are refused by name, wherever weights are read."""

import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from cae_seg.errors import UserError
from cae_seg.models.backbones.cae import CAE
from cae_seg.models.pretrained.load import load_pretrained
from cae_seg.models.pretrained.reading import load_checkpoint_file

NAME = "blocks.1.mlp.fc1.weight"


def backbone() -> CAE:
    return CAE(
        img_size=32, embed_dim=16, depth=2, num_heads=2, use_rel_pos_bias=True,
        use_sincos_pos_embed=False, use_abs_pos_emb=True, out_indices=[0, 0, 1, 1],
    )  # fmt: skip


def with_tensor(path: Path, change, name: str = NAME) -> Path:
    state = {key: value.clone() for key, value in backbone().state_dict().items()}
    state[name] = change(state[name])
    torch.save({"model": state}, path)
    return path


def with_one(value: float):
    def change(tensor):
        tensor.view(-1)[7] = value
        return tensor

    return change


WRONG = {
    "NaN": (with_one(float("nan")), "holds NaN or Inf"),
    "Inf": (with_one(float("inf")), "holds NaN or Inf"),
    "half NaN": (lambda t: with_one(float("nan"))(t.half()), "holds NaN or Inf"),
    "integer": (lambda t: t.int(), "is int32, not floating point"),
    "boolean": (lambda t: t > 0, "is bool, not floating point"),
    "float8": (lambda t: t.to(torch.float8_e4m3fn), "is float8_e4m3fn, not floating point"),
    "complex": (lambda t: t.to(torch.complex64), "is complex"),
    "sparse": (lambda t: t.to_sparse(), "is sparse"),
    "quantized": (lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8), "is quantized"),
    "meta": (lambda t: t.to("meta"), "is without data"),
    "0-d": (lambda t: t.sum(), r"is \(\), the backbone's is"),
    "1-d": (lambda t: t.flatten(), r"is \(1024,\), the backbone's is"),
    "empty": (lambda t: t[:0], r"is \(0, 16\), the backbone's is"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_tensor_that_cannot_be_a_weight_is_refused_by_name(kind, tmp_path):
    change, message = WRONG[kind]
    path = with_tensor(tmp_path / "c.pth", change)
    model = backbone()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(UserError, match=rf"c\.pth: .*fc1\.weight.*{message}") as caught:
        load_pretrained(model, path)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("shape", [(0, 2), (3, 2), (1, 2), (4,), (), (5, 5, 2), (12, 3), (0,)])
@pytest.mark.parametrize("name", ["blocks.0.attn.relative_position_bias_table", "pos_embed"])
def test_a_table_of_the_wrong_rank_or_size_is_refused_by_name(name, shape, tmp_path):
    path = with_tensor(tmp_path / "c.pth", lambda _: torch.zeros(shape), name)
    with pytest.raises(UserError, match=rf"{name} is ") as caught:
        load_pretrained(backbone(), path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", [1, 2.5, None, True, ("a", "b"), b"x"])
def test_a_key_that_is_no_text_is_refused(key, tmp_path):
    torch.save({"model": {key: torch.zeros(2)}}, tmp_path / "c.pth")
    with pytest.raises(UserError, match="under a key that is no text"):
        load_checkpoint_file(tmp_path / "c.pth")


@pytest.mark.parametrize("whole", [True, False])
def test_control_characters_in_a_name_are_escaped(whole, tmp_path):
    state = backbone().state_dict() if whole else {}
    torch.save({**state, "a\n\x1b[31mb": torch.zeros(())}, tmp_path / "c.pth")
    with pytest.raises(UserError) as caught:
        load_pretrained(backbone(), tmp_path / "c.pth")
    assert r"a\n\x1b[31mb" in str(caught.value)


def test_large_finite_values_are_accepted(tmp_path):
    path = with_tensor(tmp_path / "c.pth", lambda t: torch.full_like(t, 3e38))
    assert load_pretrained(backbone(), path).loaded


def test_a_flipped_bit_is_noticed(tmp_path):
    """torch.load itself does not compare the checksums of the archive."""
    path = with_tensor(tmp_path / "c.pth", lambda t: t)
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda entry: entry.file_size)
    content[largest.header_offset + 600] ^= 1
    path.write_bytes(content)
    torch.load(path, weights_only=True)
    with pytest.raises(UserError, match=r"is damaged \(checksum of c/data/\d+\)"):
        load_checkpoint_file(path)


def test_dictionaries_nested_without_end_are_refused(tmp_path):
    value: dict = {}
    for _ in range(200):
        value = {"model": value}
    torch.save(value, tmp_path / "c.pth")
    with pytest.raises(UserError, match="nested dictionaries"):
        load_checkpoint_file(tmp_path / "c.pth")


def test_safetensors_are_checked_as_well(tmp_path):
    state = {key: value.clone().contiguous() for key, value in backbone().state_dict().items()}
    state[NAME].view(-1)[3] = float("nan")
    save_file(state, tmp_path / "c.safetensors")
    with pytest.raises(UserError, match=rf"{NAME} holds NaN or Inf"):
        load_pretrained(backbone(), tmp_path / "c.safetensors")


def test_fine_tuned_weights_with_nan_are_refused(tmp_path):
    from cae_seg.engine.weights import load_weights

    model = nn.Sequential(nn.Linear(3, 2))
    state = {"module." + name: value.clone() for name, value in model.state_dict().items()}
    state["module.0.bias"][1] = float("nan")
    torch.save({"state_dict": state}, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"w\.pth: 0\.bias holds NaN or Inf"):
        load_weights(model, tmp_path / "w.pth")

"""Checkpoints of every layout: what is loaded, resized, drawn, dropped, and what is refused."""

import argparse
import gzip
import json
import pickle
import re
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from fidelity import largest, record
from safetensors.torch import save_file

from cae_seg.errors import UserError
from cae_seg.models.backbones.cae import CAE
from cae_seg.models.pretrained.convert import convert
from cae_seg.models.pretrained.load import load_pretrained
from cae_seg.models.pretrained.reading import load_checkpoint_file
from cae_seg.models.pretrained.resize import (
    geometric_offsets,
    resize_geometric_bias_table,
    resize_position_embedding,
)

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = json.loads(gzip.decompress((GOLDEN / "ckpt.json.gz").read_bytes()))
ARRAYS = dict(np.load(GOLDEN / "ckpt.npz"))

# Where the published code failed, skipped tensors or went on from noise, and we do not.
REPAIRED = {
    "i_cae_silent_nothing",
    "iii_moco_with_tables",
    "iv_ibot_backbone_with_index_only",
    "iv_ibot_backbone_with_tables",
    "x_nonsquare_model_tables",
}
REFUSED = {
    "x_heads_mismatch_same_size": r"bias_table is \(964, 4\), the backbone's is \(964, 2\)",
    "x_heads_mismatch_resize": r"bias_table is \(172, 4\), the backbone's is \(964, 2\)",
    "x_dim_mismatch": r"cls_token is \(1, 1, 32\), the backbone's is \(1, 1, 16\)",
    "x_tables_but_model_without_relpos": r"relative_position_bias_table ×2 have no place",
    "x_pos_embed_but_model_without": r"pos_embed has no place",
}
LOADED = sorted(set(CASES) - set(REFUSED) - REPAIRED)


def backbone(**overrides) -> CAE:
    arguments = {
        "img_size": 256,
        "embed_dim": 16,
        "depth": 2,
        "num_heads": 2,
        "qkv_bias": True,
        "init_values": 0.1,
        **overrides,
    }
    last = arguments["depth"] - 1
    return CAE(out_indices=[0, 0, last, last], **arguments)


def target(case: str) -> CAE:
    """Return the backbone that the published loader was run on."""
    known = CASES[case]
    names = {"dim": "embed_dim", "heads": "num_heads"}
    kept = ("dim", "depth", "heads", "use_rel_pos_bias", "use_sincos_pos_embed", "out_with_norm")
    return backbone(
        img_size=known["img_size"], **{names.get(k, k): known[k] for k in kept if k in known}
    )


def drawn(key: str, shape: list[int], dtype: str = "float32") -> torch.Tensor:
    """Return numbers that belong to a key: what is copied can be told by its values."""
    generator = torch.Generator().manual_seed(zlib.crc32(key.encode()))
    return torch.randn(shape, generator=generator).to(getattr(torch, dtype))


def contents(described: dict) -> dict:
    """Build a checkpoint file's contents from their description in `ckpt.json.gz`."""
    built = {}
    for key, entry in described.items():
        if "contents" in entry:
            built[key] = contents(entry["contents"])
        elif "plain" in entry:
            built[key] = entry["plain"]
        elif "values" in entry:
            built[key] = torch.from_numpy(ARRAYS[entry["values"]])
        else:
            built[key] = drawn(key, entry["shape"], entry.get("dtype", "float32"))
    return built


def tensors(nested: dict) -> dict[str, torch.Tensor]:
    flat = {}
    for key, value in nested.items():
        if isinstance(value, dict):
            flat.update(tensors(value))
        elif isinstance(value, torch.Tensor):
            flat[key] = value
    return flat


def plain_state(model: CAE) -> dict[str, torch.Tensor]:
    """Return a checkpoint of the plain layout that fills the model."""
    return {
        name: drawn(name, list(t.shape))
        for name, t in model.state_dict().items()
        if not name.startswith("fpn") and not name.endswith("_index")
    }


def save(path: Path, state: dict) -> Path:
    torch.save(state, path)
    return path


@pytest.mark.parametrize("case", LOADED)
def test_layout_loads_what_the_published_code_loads(case, tmp_path):
    known, model = CASES[case], target(case)
    state = contents(known["file"])
    before = {name: t.clone() for name, t in model.state_dict().items()}
    report = load_pretrained(model, save(tmp_path / "pretrained.pth", state))
    after, source = model.state_dict(), tensors(state)
    for name, key in known["copied"].items():
        assert torch.equal(after[name], source[key]), name
    for name, values in known["resized"].items():
        stage = "position embeddings" if name == "pos_embed" else "relative position tables"
        record(f"checkpoints: resized {stage}", largest(after[name], ARRAYS[values]), 1e-6)
    ours = set(report.initialised) | {n for n in after if n.endswith(("_index", "_tracked"))}
    assert set(known["untouched"]) - set(report.loaded) - set(report.resized) <= ours
    assert all(torch.equal(after[name], before[name]) for name in ours)
    assert set(known["copied"]) | set(known["resized"]) <= {*report.loaded, *report.resized}


@pytest.mark.parametrize("case", sorted(REPAIRED))
def test_layout_that_the_published_code_could_not_use_fills_the_backbone(case):
    model = target(case)
    state = contents(CASES[case]["file"])
    loaded, report = convert(state, model)
    prefix = re.compile(r"(module\.)?(base_encoder|encoder|backbone)\.")
    source = {prefix.sub("", key): t for key, t in tensors(state).items()}
    trained = {n for n in model.state_dict() if not n.startswith("fpn") and "relative" not in n}
    assert trained <= set(loaded)
    for name in report.loaded:
        assert torch.equal(loaded[name], source[name])
    tables = {n for n in source if n.endswith("bias_table")}
    assert tables <= set(report.resized)


@pytest.mark.parametrize("case", sorted(REFUSED))
def test_other_architecture_is_refused_with_both_shapes(case):
    with pytest.raises(UserError, match=REFUSED[case]):
        convert(contents(CASES[case]["file"]), target(case))


def test_a_foreign_key_neither_hides_the_backbone_nor_goes_unnamed():
    case = "i_cae_silent_nothing"
    _, report = convert(contents(CASES[case]["file"]), target(case))
    assert report.layout == "CAE"
    assert report.left == ("alpha",)
    assert "left: 1 (alpha)" in report.summary()


def test_layout_does_not_depend_on_the_order_of_keys():
    case = "i_cae_release_large"
    state = contents(CASES[case]["file"])
    backwards = {"model": dict(reversed(state["model"].items()))}
    one, _ = convert(state, target(case))
    other, report = convert(backwards, target(case))
    assert report.layout == "CAE"
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_released_layout_tells_what_became_of_each_tensor():
    case = "i_cae_release"
    state = contents(CASES[case]["file"])
    _, report = convert(state, target(case), source="cae_base.pth")
    counts = report.as_dict()
    assert counts["layout"] == "CAE"
    assert counts["loaded"] + counts["resized"] + counts["dropped"] == len(state["model"])
    assert report.resized == ("pos_embed",)
    assert "blocks.*.attn.relative_position_bias_table ×2" in report.summary()
    assert "mask_token" in report.dropped
    assert report.summary().startswith("checkpoint cae_base.pth\n")


def test_tables_start_at_zero_where_the_checkpoint_has_none():
    model = target("i_cae_release")
    load = convert(contents(CASES["i_cae_release"]["file"]), model)[0]
    model.load_state_dict(load, strict=False)
    assert not model.blocks[1].attn.relative_position_bias_table.any()


def test_position_embedding_of_the_checkpoint_stays_frozen():
    model = target("i_cae_release")
    model.load_state_dict(convert(contents(CASES["i_cae_release"]["file"]), model)[0], strict=False)
    assert not model.pos_embed.requires_grad


def test_shared_table_is_handed_to_every_block():
    model = target("ii_beit_shared")
    loaded, report = convert(contents(CASES["ii_beit_shared"]["file"]), model)
    names = [f"blocks.{i}.attn.relative_position_bias_table" for i in range(2)]
    assert list(report.resized) == names
    assert torch.equal(*(loaded[name] for name in names))


@pytest.mark.parametrize("prefix", ["base_encoder.", ""], ids=["MoCo v3", "timm"])
def test_fused_bias_gives_queries_and_values_theirs(prefix):
    model = backbone(use_rel_pos_bias=False)
    state = plain_state(model)
    bias = drawn("fused", [48])
    for i in range(2):
        del state[f"blocks.{i}.attn.q_bias"], state[f"blocks.{i}.attn.v_bias"]
        state[f"blocks.{i}.attn.qkv.bias"] = bias
    loaded, report = convert({"state_dict": {prefix + n: t for n, t in state.items()}}, model)
    assert torch.equal(loaded["blocks.1.attn.q_bias"], bias[:16])
    assert torch.equal(loaded["blocks.1.attn.v_bias"], bias[32:])
    assert "blocks.1.attn.qkv.bias[key]" in report.dropped


def test_mae_drops_its_decoder_and_starts_the_layer_scale():
    model = backbone()
    state = {n: t for n, t in plain_state(model).items() if "gamma" not in n and "table" not in n}
    decoder = ("mask_token", "decoder_pos_embed", "decoder_embed.weight", "decoder_pred.bias")
    decoder += ("decoder_blocks.0.attn.qkv.weight", "decoder_norm.weight", "norm.weight")
    state.update({name: drawn(name, [16]) for name in decoder})
    _, report = convert({"model": state, "args": argparse.Namespace(lr=1.0)}, model)
    assert report.layout == "MAE"
    assert set(report.dropped) == set(decoder)
    assert "blocks.0.gamma_1" in report.initialised


def test_timm_names_of_the_layer_scale_are_known():
    model = backbone(use_rel_pos_bias=False)
    state = plain_state(model)
    renamed = {
        n.replace("gamma_1", "ls1.gamma").replace("gamma_2", "ls2.gamma"): t
        for n, t in state.items()
    }
    renamed |= {"norm.weight": torch.ones(16), "head.weight": torch.ones(3, 16)}
    loaded, _ = convert(renamed, model)
    assert torch.equal(loaded["blocks.1.gamma_2"], state["blocks.1.gamma_2"])


@pytest.mark.parametrize("wrapper", ["", "module."])
def test_dino_file_gives_its_teacher(wrapper):
    model = backbone()
    state = plain_state(model)
    of_student = {f"{wrapper}backbone.{n}": t + 1 for n, t in state.items()}
    of_teacher = {f"backbone.{n}": t for n, t in state.items()}
    of_teacher["head.mlp.0.weight"] = torch.ones(1)
    loaded, report = convert({"student": of_student, "teacher": of_teacher, "epoch": 3}, model)
    assert report.layout == "iBOT or DINO"
    assert torch.equal(loaded["cls_token"], state["cls_token"])


def test_fine_tuned_checkpoint_gives_backbone_and_pyramid(tmp_path):
    model = backbone()
    state = {f"backbone.{n}": t for n, t in plain_state(model).items()}
    own = {n: t for n, t in model.state_dict().items() if n not in plain_state(model)}
    state |= {f"backbone.{n}": t.clone() for n, t in own.items()}
    state["backbone.fpn2.0.bias"] = drawn("fpn", [16])
    state |= {
        "decode_head.conv_seg.bias": torch.ones(3),
        "auxiliary_head.conv_seg.bias": torch.ones(3),
    }
    file = {
        "meta": {"iter": 3, "CLASSES": ("wall",)},
        "state_dict": state,
        "optimizer": {},
        "amp": {},
    }
    report = load_pretrained(model, save(tmp_path / "iter_3.pth", file))
    assert report.layout == "fine-tuned mmsegmentation"
    assert not report.initialised
    assert torch.equal(model.fpn2[0].bias, state["backbone.fpn2.0.bias"])


def test_safetensors_file_loads(tmp_path):
    model = backbone()
    state = plain_state(model)
    save_file(state, tmp_path / "vit.safetensors")
    load_pretrained(model, tmp_path / "vit.safetensors")
    assert torch.equal(model.blocks[0].mlp.fc1.weight, state["blocks.0.mlp.fc1.weight"])


def test_init_cfg_names_the_checkpoint(tmp_path, caplog):
    path = save(tmp_path / "vit.pth", plain_state(backbone()))
    model = backbone(init_cfg={"type": "Pretrained", "checkpoint": str(path)})
    with caplog.at_level("INFO", logger="cae_seg.models.pretrained.load"):
        model.init_weights()
    assert model.pretrained_report.as_dict()["loaded"] == len(plain_state(model))
    assert str(path) in caplog.text
    assert torch.equal(model.cls_token, plain_state(model)["cls_token"])


def test_position_embedding_without_a_class_row_gets_one_of_zeros():
    patches = torch.randn(1, 9, 4)
    resized = resize_position_embedding(patches, (3, 3))
    assert torch.equal(resized[:, 1:], patches)
    assert not resized[:, 0].any()


def test_spline_ratio_is_the_published_one():
    for sides, ratio in {(13, 31): 1.365491314, (27, 63): 1.134917812}.items():
        offsets = geometric_offsets(*sides)
        step = np.diff(offsets[len(offsets) // 2 :])
        assert step[0] == 1
        record("ratio of the table's spline", abs(step[1] - ratio), 1e-9)


def test_table_of_a_square_grid_fits_one_that_is_not():
    table = torch.randn(7 * 7 + 3, 2)
    resized = resize_geometric_bias_table(table, (4, 6))
    assert resized.shape == (7 * 11 + 3, 2)
    assert torch.equal(resized[-3:], table[-3:])
    centre = resized[:-3].view(7, 11, 2)[3, 5]
    assert torch.allclose(centre, table[:-3].view(7, 7, 2)[3, 3], atol=1e-6)
    square = resize_geometric_bias_table(table, (6, 6))[:-3].view(11, 11, 2)
    assert torch.allclose(resized[:-3].view(7, 11, 2)[3], square[5], atol=1e-6)


def test_missing_tensors_stop_before_training():
    model = backbone()
    state = plain_state(model)
    del state["blocks.1.mlp.fc1.weight"], state["cls_token"]
    with pytest.raises(UserError, match=r"does not fill the backbone.*blocks.*mlp.fc1.weight"):
        convert(state, model, source="half.pth")


def test_half_of_the_tables_is_no_start():
    model = backbone()
    state = plain_state(model)
    del state["blocks.1.attn.relative_position_bias_table"]
    with pytest.raises(UserError, match="relative_position_bias_table missing"):
        convert(state, model)


def test_deeper_checkpoint_is_refused():
    with pytest.raises(UserError, match=r"deep.pth: blocks.*have no place.*depth"):
        convert(plain_state(backbone(depth=3)), backbone(), source="deep.pth")


def test_unknown_key_inside_the_backbone_is_named():
    state = plain_state(backbone()) | {"register_tokens": torch.zeros(1, 4, 16)}
    with pytest.raises(UserError, match="register_tokens has no place"):
        convert(state, backbone())


@pytest.mark.parametrize("state", [{}, {"model": {}}, {"fc.weight": torch.ones(2)}, {"epoch": 3}])
def test_file_without_a_transformer_is_refused(state):
    with pytest.raises(UserError, match=r"x.pth: contains no backbone"):
        convert(state, backbone(), source="x.pth")


def test_a_refused_checkpoint_changes_nothing(tmp_path):
    model = backbone()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    state = plain_state(model)
    del state["cls_token"]
    with pytest.raises(UserError):
        load_pretrained(model, save(tmp_path / "half.pth", state))
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


class Trap:
    """Unpickling this would run code."""

    def __reduce__(self):
        return exec, ("raise SystemExit('pickled code ran')",)


def damaged(tmp_path: Path, kind: str) -> Path:
    path = tmp_path / f"{kind}.pth"
    if kind == "missing":
        return path
    if kind == "folder":
        path.mkdir()
        return path
    whole = save(path, plain_state(backbone())).read_bytes()
    other = {
        "empty": b"",
        "truncated": whole[: len(whole) // 2],
        "text": b"<html>sign in to download</html>",
        "list": None,
        "trap": None,
        "bare pickle": pickle.dumps(Trap()),
    }[kind]
    if other is None:
        torch.save([1, 2] if kind == "list" else {"model": Trap()}, path)
    else:
        path.write_bytes(other)
    return path


@pytest.mark.parametrize(
    ("kind", "output"),
    [
        ("missing", "no such checkpoint"),
        ("folder", "is a folder"),
        ("empty", "truncated, damaged or not a checkpoint"),
        ("truncated", "truncated, damaged or not a checkpoint"),
        ("text", "truncated, damaged or not a checkpoint"),
        ("list", "holds a list"),
        ("trap", "needs pickled code"),
        ("bare pickle", "needs pickled code"),
    ],
)
def test_unreadable_file_is_one_line_that_names_it(kind, output, tmp_path):
    path = damaged(tmp_path, kind)
    with pytest.raises(UserError, match=output) as caught:
        load_checkpoint_file(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["truncated", "text"])
def test_damaged_safetensors_file_is_named(kind, tmp_path):
    path = tmp_path / "vit.safetensors"
    save_file(plain_state(backbone()), path)
    path.write_bytes(path.read_bytes()[:100] if kind == "truncated" else b"<html></html>")
    with pytest.raises(UserError, match="truncated, damaged or not a checkpoint"):
        load_checkpoint_file(path)


def test_code_in_a_checkpoint_is_refused_with_the_way_out(tmp_path):
    path = save(tmp_path / "whole_model.pth", {"model": torch.nn.Linear(2, 2)})
    with pytest.raises(UserError, match=r"Linear.*docs/checkpoints.md"):
        load_checkpoint_file(path)


def test_arguments_and_numbers_next_to_the_weights_are_harmless(tmp_path):
    """Training scripts store their arguments, and learning rates as NumPy scalars."""
    file = {
        "model": plain_state(backbone()),
        "optimizer": {"param_groups": [{"lr": np.float64(0.1), "step": np.int64(3)}]},
        "args": argparse.Namespace(output_dir="/nowhere", lr=1e-3),
    }
    path = save(tmp_path / "with_arguments.pth", file)
    assert load_checkpoint_file(path)["args"].lr == 1e-3
    assert convert(load_checkpoint_file(_with_old_numpy_names(path)), backbone())


def _with_old_numpy_names(path: Path) -> Path:
    """Rewrite a file as NumPy 1 would have written it."""
    old = path.with_stem("numpy_1")
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(old, "w") as copy:
        for item in source.infolist():
            data = source.read(item)
            if item.filename.endswith("data.pkl"):
                assert b"numpy._core.multiarray" in data
                data = data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
            copy.writestr(item.filename, data)
    return old


def test_documented_conversion_opens_what_is_refused(tmp_path):
    page = (GOLDEN.parents[1] / "docs" / "checkpoints.md").read_text(encoding="utf-8")
    script = tmp_path / "convert.py"
    script.write_text(re.search(r"## Old checkpoints.*?```python\n(.*?)```", page, re.S)[1])
    model = backbone()
    whole = torch.nn.Module()
    whole.backbone = model
    old = save(tmp_path / "old.pth", {"model": whole, "epoch": 3})
    with pytest.raises(UserError, match="needs pickled code"):
        load_checkpoint_file(old)
    new = tmp_path / "new.safetensors"
    subprocess.run([sys.executable, script, old, new], check=True, cwd=GOLDEN.parents[1])
    assert load_pretrained(backbone(), new).layout == "iBOT or DINO"

"""Official pretraining files of other systems: what each gives to our backbone."""

import functools

import numpy as np
import pytest
import torch
from fidelity import largest, record
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS
from published import GOLDEN, read_archive

import cae_seg.registration  # noqa: F401
from cae_seg.errors import UserError
from cae_seg.models.pretrained.convert import convert

META, ARRAYS = read_archive(GOLDEN / "pretrained.npz")
CASES = META["cases"]
REFUSED = {"deit_b_upernet/default_patch_bias": r"patch_embed.projection.bias has no place"}
# The published loader fails, or loads nothing or noise; here the file fills the backbone.
FIXED = {
    "swin_t/absolute_pos_embed_other_grid",
    "swin_t/segmentor_as_pretrained",
    "xcit_s12_p16/official_model_key",
    "ibot_b/full_training_checkpoint",
    "deit_b_upernet/unconverted",
}


def backbone(case: str):
    """Build our backbone of a case."""
    known = dict(CASES[case]["model"])
    known.pop("type", None)
    init_default_scope("mmseg")
    torch.manual_seed(0)
    return MODELS.build(_BUILDERS[case.split("_")[0]](known))


def _swin(known: dict) -> dict:
    absolute = known.pop("ape", False)
    strides = (4,) + (2,) * (len(known["depths"]) - 1)
    embed_dims = known.pop("embed_dim")
    return known | {
        "type": "SwinBackbone",
        "embed_dims": embed_dims,
        "strides": strides,
        "use_abs_pos_embed": absolute,
    }


def _xcit(known: dict) -> dict:
    name = f"xcit_small_12_p{known.pop('patch_size')}_224"
    options = {key: known[key] for key in ("embed_dim", "depth", "num_heads", "eta")}
    kept = {"out_indices": known["out_indices"], "options": options}
    return kept | {"type": "TimmModel", "model_name": name, "img_size": 64, "norm": False}


def _setr(known: dict) -> dict:
    return {
        "type": "ViTBackbone",
        "img_size": (known["img_size"],) * 2,
        "embed_dims": known["embed_dim"],
        "num_layers": known["depth"],
        "num_heads": known["num_heads"],
        "interpolate_mode": "bilinear",
    }


def _vit(known: dict) -> dict:
    known.pop("fpn1_norm", None)
    size = known.pop("img_size")
    positions = known.pop("use_abs_pos_emb", True)
    return (
        {"use_rel_pos_bias": False}
        | known
        | {
            "type": "CAE",
            "img_size": size[0] if isinstance(size, list) else size,
            "use_abs_pos_emb": positions,
            "use_sincos_pos_embed": False,
        }
    )


_BUILDERS = {
    "swin": _swin,
    "xcit": _xcit,
    "setr": _setr,
    "beit": _vit,
    "mae": _vit,
    "ibot": _vit,
    "deit": lambda known: known | {"type": "ViTBackbone"},
}


@functools.cache
def values(case: str) -> dict[str, torch.Tensor]:
    """Return the file's tensors by their path in the file."""
    system = case.split("/")[0]
    keys = CASES[case]["keys"]
    return {key: _tensor(f"{system}/{source}") for key, source in keys.items()}


def _tensor(key: str) -> torch.Tensor:
    value = ARRAYS[key]
    return torch.from_numpy(value.astype(np.float32) if value.dtype.kind == "f" else value)


def contents(case: str) -> dict:
    """Return what reading the file gives."""
    wrappers, file = CASES[case]["wrapper"], {}
    for key, value in values(case).items():
        wrapper, _, name = key.partition("/")
        if wrapper in wrappers:
            file.setdefault(wrapper, {})[name] = value
        else:
            file[key] = value
    return file


def expected(case: str) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Return what the published loader copies, and what it resizes, under published names."""
    copied, resized = {}, {}
    for name, what in CASES[case]["result"].items():
        if what.startswith("loaded from "):
            copied[name] = values(case)[what.removeprefix("loaded from ")]
        elif what.startswith("loaded after"):
            system = case.split("/")[0]
            resized[name] = _tensor(f"{system}/{CASES[case]['state'][name]}")
    return copied, resized


def translated(model, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    found = model.architecture.translate(tensors, model)
    return {name: value for _, name, value in found if value is not None}


@pytest.mark.parametrize("case", sorted(set(CASES) - FIXED - set(REFUSED)))
def test_official_file_gives_what_the_published_loader_gives(case):
    model = backbone(case)
    loaded, report = convert(contents(case), model, source=case)
    copied, resized = expected(case)
    for name, value in translated(model, copied).items():
        if not name.endswith(("relative_position_index", "num_batches_tracked")):
            assert torch.equal(loaded[name], value), name
    for name, value in translated(model, resized).items():
        value = value.flatten(2).mT if name == "absolute_pos_embed" else value
        error = largest(loaded[name], value)
        record(f"{case.split('/')[0]}: resized from the official file", error, 1e-6)
    listed = {*report.dropped, *report.left}
    if any(key.endswith("rel_pos_bias.relative_position_bias_table") for key in values(case)):
        listed.add("rel_pos_bias.relative_position_bias_table")  # handed to every block
    for key in CASES[case]["not_used"]:
        name = key.split("/")[-1]
        if not name.endswith(("_index", "num_batches_tracked")):
            assert any(name.endswith(other) for other in listed), name


@pytest.mark.parametrize("case", sorted(FIXED))
def test_file_that_the_published_loader_cannot_use_fills_the_backbone(case):
    model = backbone(case)
    loaded, report = convert(contents(case), model, source=case)
    trained = {n for n, _ in model.named_parameters()}
    start = {n for n in trained if n.startswith(("fpn", "norm0", "norm1", "norm2"))}
    assert trained - start <= {*report.loaded, *report.resized}
    assert set(report.initialised) & trained <= start
    if case.startswith("swin"):
        return
    other = {
        "xcit_s12_p16/official_model_key": "xcit_s12_p16/flat",
        "ibot_b/full_training_checkpoint": "ibot_b/teacher_backbone",
        "deit_b_upernet/unconverted": "deit_b_upernet/deit",
    }[case]
    same, _ = convert(contents(other), model, source=other)
    assert loaded.keys() == same.keys()
    if not case.startswith("ibot"):  # the student's values are others than the teacher's
        assert all(torch.equal(loaded[name], same[name]) for name in same)


def test_training_file_gives_its_teacher():
    case = "ibot_b/full_training_checkpoint"
    loaded, _ = convert(contents(case), backbone(case), source=case)
    teacher = contents(case)["teacher"]["backbone.blocks.0.mlp.fc1.weight"]
    assert torch.equal(loaded["blocks.0.mlp.fc1.weight"], teacher)


@pytest.mark.parametrize("case", sorted(REFUSED))
def test_file_with_a_tensor_that_the_backbone_lacks_is_refused(case):
    with pytest.raises(UserError, match=REFUSED[case]):
        convert(contents(case), backbone(case), source=case)


@pytest.mark.parametrize("system", ["swin_t", "setr_naive", "beit_b", "mae_b", "xcit_s12_p16"])
def test_half_a_file_is_refused_by_the_names_that_are_missing(system):
    case = next(c for c in sorted(CASES) if c.startswith(system) and c not in FIXED)
    file = contents(case)
    inner = file.get(next(iter(CASES[case]["wrapper"]), ""), file)
    gone = next(key for key in inner if key.endswith("mlp.fc1.weight") and "cls_attn" not in key)
    del inner[gone]
    with pytest.raises(UserError, match=r"does not fill the backbone: .* missing"):
        convert(file, backbone(case), source=case)

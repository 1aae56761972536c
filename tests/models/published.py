"""Reference numbers of other published segmentors, and the models of ours that must give them."""

import functools
import gzip
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS

import cae_seg.registration  # noqa: F401
from cae_seg.models.pretrained.published import load_published

# The whole set of reference files may be elsewhere; a selection is part of the repository.
GOLDEN = Path(
    os.environ.get("CAE_SEG_GOLDEN_BACKBONES", Path(__file__).parents[1] / "golden" / "backbones")
)
BN = {"type": "BN", "requires_grad": True}


def read_archive(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return the description and the arrays of an archive: flat arrays by type, and an index."""
    arrays = np.load(path)
    meta = json.loads(gzip.decompress(arrays["meta"].tobytes()))
    flat = {kind: arrays[kind] for kind in arrays.files if kind != "meta"}
    unpacked = {}
    for key, (kind, offset, shape) in meta.pop("index").items():
        size = int(np.prod(shape))
        unpacked[key] = flat[kind][offset : offset + size].reshape(shape)
    return meta, unpacked


def read_json(name: str) -> dict[str, Any]:
    path = GOLDEN / name
    text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return json.loads(text)


@dataclass(frozen=True)
class Reference:
    """One system: a small model's weights, inputs, outputs, losses and gradients."""

    name: str
    meta: dict[str, Any]
    arrays: dict[str, np.ndarray]

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        """The segmentor's tensors under the published names."""
        named = {k[3:]: v for k, v in self.arrays.items() if k.startswith("sd/")}
        return {k: torch.from_numpy(v.astype(np.float32)) for k, v in named.items()}

    def tensor(self, key: str) -> torch.Tensor:
        return torch.from_numpy(np.asarray(self.arrays[key], dtype=np.float32))

    def like(self, key: str, whole: torch.Tensor) -> torch.Tensor:
        """Return the part of a whole output that the reference keeps of it."""
        if key in self.meta["start_step"]:
            top, rows, left, columns = self.meta["start_step"][key]
            whole = whole[:, :, top::rows, left::columns]
        if key in self.meta["every"]:
            whole = whole.flatten()[:: self.meta["every"][key]]
        return whole

    def error(self, key: str, whole: torch.Tensor) -> float:
        """Return the largest difference over the largest reference value."""
        expected, actual = self.tensor(key), self.like(key, whole)
        assert actual.shape == expected.shape, (key, actual.shape, expected.shape)
        return float((actual - expected).abs().max() / expected.abs().max())


@functools.cache
def reference(name: str) -> Reference:
    parts = sorted(GOLDEN.glob(f"{name}.?.npz"))
    archives = [read_archive(part) for part in parts]
    return Reference(name, archives[0][0], {k: v for _, part in archives for k, v in part.items()})


def build(name: str):
    """Build our model of a reference, with its weights, in eval mode."""
    model, weights = build_empty(name), reference(name).weights
    if not any(key.startswith("backbone.") for key in weights):  # heads only
        own = {f"backbone.{key}": value for key, value in model.backbone.state_dict().items()}
        weights = own | weights
    load_published(model, weights, source=name)
    return model.eval()


def build_empty(name: str):
    init_default_scope("mmseg")
    torch.manual_seed(0)
    return MODELS.build(_CONFIGS[name](reference(name).meta["config"]["model"]))


def _segmentor(model: dict, backbone: dict, neck: dict | None = None, **heads: Any) -> dict:
    config = {
        "type": "FastEncoderDecoder",
        "backbone": backbone,
        "decode_head": model["decode_head"],
        "auxiliary_head": model["auxiliary_head"],
        "train_cfg": {},
        "test_cfg": {"mode": "whole"},
        **heads,
    }
    return config | ({"neck": neck} if neck else {})


def _swin(model: dict) -> dict:
    known = model["backbone"]
    kept = ("depths", "num_heads", "window_size", "out_indices", "drop_path_rate")
    backbone = {key: known[key] for key in kept}
    backbone |= {"type": "SwinBackbone", "embed_dims": known["embed_dim"]}
    return _segmentor(model, backbone)


def _xcit(model: dict) -> dict:
    known = model["backbone"]
    patch = known["patch_size"]
    backbone = {
        "type": "TimmModel",
        "model_name": f"xcit_small_12_p{patch}_224",
        "img_size": 64,
        "norm": False,
        "out_indices": known["out_indices"],
        "options": {key: known[key] for key in ("embed_dim", "depth", "num_heads", "eta")},
    }
    rescales = [4, 2, 1, 0.5] if patch == 16 else [2, 1, 0.5, 0.25]
    neck = {
        "type": "Feature2Pyramid",
        "embed_dim": known["embed_dim"],
        "rescales": rescales,
        "norm_cfg": BN,
    }
    return _segmentor(model, backbone, neck)


def _vit(model: dict) -> dict:
    """BEiT, MAE and iBOT are one class here: CAE's."""
    known = dict(model["backbone"])
    size = known["img_size"]
    known.pop("fpn1_norm", None)
    tables = known.pop("use_rel_pos_bias", False)
    backbone = known | {
        "type": "CAE",
        "img_size": size[0] if isinstance(size, list) else size,
        "use_sincos_pos_embed": False,
        "use_rel_pos_bias": tables,
        "use_abs_pos_emb": known.get("use_abs_pos_emb", True),
    }
    return _segmentor(model, backbone)


def _zoo(model: dict) -> dict:
    backbone = dict(model["backbone"], type="ViTBackbone")
    return _segmentor(model, backbone, model["neck"])


def _setr_backbone(known: dict, taps: list[int], **options: Any) -> dict:
    return {
        "type": "ViTBackbone",
        "img_size": (known["img_size"],) * 2,
        "embed_dims": known["embed_dim"],
        "num_layers": known["depth"],
        "num_heads": known["num_heads"],
        "norm_cfg": {"type": "LN", "eps": 1e-6},
        "interpolate_mode": "bilinear",
        "out_indices": taps,
        **options,
    }


def _setr_up(progressive: bool, model: dict) -> dict:
    heads = [model["decode_head"], *model["auxiliary_head"]]
    taps = sorted({head["in_index"] for head in heads})

    def head(known: dict, convs: int, scale: int) -> dict:
        kept = ("in_channels", "num_classes", "norm_cfg", "align_corners", "loss_decode")
        return {key: known[key] for key in kept} | {
            "type": "SETRUPHead",
            "channels": 16,
            "in_index": taps.index(known["in_index"]),
            "num_convs": convs,
            "up_scale": scale,
            "kernel_size": 3 if progressive else 1,
            "dropout_ratio": 0,
        }

    first = head(heads[0], 4, 2) if progressive else head(heads[0], 1, 1)
    others = [head(known, 1, 4 if progressive else 1) for known in heads[1:]]
    backbone = _setr_backbone(model["backbone"], taps)
    return _segmentor(model, backbone, decode_head=first, auxiliary_head=others)


def _setr_mla(model: dict) -> dict:
    known, decode = model["backbone"], model["decode_head"]
    channels, dim = known["mla_channels"], known["embed_dim"]
    neck = {
        "type": "MLANeck",
        "in_channels": [dim] * 4,
        "out_channels": channels,
        "norm_cfg": BN,
        "act_cfg": {"type": "ReLU"},
    }
    kept = ("num_classes", "norm_cfg", "loss_decode")
    head = {key: decode[key] for key in kept} | {
        "type": "MLAHead",
        "in_channels": [channels] * 4,
        "in_index": [3, 2, 1, 0],
        "channels": 4 * decode["mlahead_channels"],
        "mla_channels": decode["mlahead_channels"],
        "dropout_ratio": 0,
    }
    others = [
        {
            "type": "MLAAuxiliaryHead",
            "in_channels": channels,
            "in_index": 3 - aux["in_index"],
            "num_classes": aux["num_classes"],
            "loss_decode": aux["loss_decode"],
        }
        for aux in model["auxiliary_head"]
    ]
    backbone = _setr_backbone(known, known["mla_index"], with_cls_token=False)
    return _segmentor(model, backbone, neck, decode_head=head, auxiliary_head=others)


_CONFIGS = {
    "swin_t": _swin,
    "xcit_s12_p16": _xcit,
    "xcit_s12_p8": _xcit,
    "beit_b": _vit,
    "mae_b": _vit,
    "ibot_b": _vit,
    "setr_naive": functools.partial(_setr_up, False),
    "setr_pup": functools.partial(_setr_up, True),
    "setr_mla": _setr_mla,
    "deit_b_upernet": _zoo,
    "vit_b_ln_mln_upernet": _zoo,
}
SYSTEMS = tuple(name for name in _CONFIGS if (GOLDEN / f"{name}.0.npz").exists())

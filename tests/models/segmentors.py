"""The tiny segmentor of the reference runs."""

import copy

import torch
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample

import cae_seg.registration  # noqa: F401

NORM = {"type": "AnyDeviceSyncBN", "requires_grad": True}
TINY = {
    "type": "FastEncoderDecoder",
    "backbone": {
        "type": "CAE",
        "img_size": 64,
        "patch_size": 16,
        "embed_dim": 64,
        "depth": 4,
        "num_heads": 4,
        "mlp_ratio": 4,
        "qkv_bias": True,
        "use_abs_pos_emb": False,
        "use_rel_pos_bias": True,
        "init_values": 0.1,
        "drop_path_rate": 0.0,
        "out_indices": [0, 1, 2, 3],
    },
    "decode_head": {
        "type": "FastUPerHead",
        "in_channels": [64, 64, 64, 64],
        "in_index": [0, 1, 2, 3],
        "pool_scales": (1, 2, 3, 6),
        "channels": 32,
        "dropout_ratio": 0,
        "num_classes": 150,
        "norm_cfg": NORM,
        "align_corners": False,
        "loss_decode": {"type": "CrossEntropyLoss", "use_sigmoid": False, "loss_weight": 1.0},
    },
    "auxiliary_head": {
        "type": "FastFCNHead",
        "in_channels": 64,
        "in_index": 2,
        "channels": 32,
        "num_convs": 1,
        "concat_input": False,
        "dropout_ratio": 0,
        "num_classes": 150,
        "norm_cfg": NORM,
        "align_corners": False,
        "loss_decode": {"type": "CrossEntropyLoss", "use_sigmoid": False, "loss_weight": 0.4},
    },
    "train_cfg": {},
    "test_cfg": {"mode": "slide", "crop_size": (64, 64), "stride": (43, 43)},
}
INTEGERS = ("relative_position_index", "num_batches_tracked")


def tiny(weights: dict[str, torch.Tensor] | None = None, **overrides):
    """Build the tiny segmentor, in eval mode; `overrides` replace keys of its config."""
    init_default_scope("mmseg")
    torch.manual_seed(0)
    model = MODELS.build(copy.deepcopy(TINY | overrides))
    if weights is not None:
        missing, unexpected = model.load_state_dict(weights, strict=False)
        assert not unexpected
        assert all(name.endswith(INTEGERS) for name in missing)
    return model.eval()


def with_dropout(drop_path: float = 0.2, dropout: float = 0.2) -> dict:
    """Return overrides of the config that switch the randomness of training on."""
    config = copy.deepcopy(TINY)
    config["backbone"]["drop_path_rate"] = drop_path
    config["decode_head"]["dropout_ratio"] = config["auxiliary_head"]["dropout_ratio"] = dropout
    return {key: config[key] for key in ("backbone", "decode_head", "auxiliary_head")}


def samples(labels: torch.Tensor, **meta) -> list[SegDataSample]:
    """Wrap labels (N, 1, H, W) as mmsegmentation's data samples."""
    return [
        SegDataSample(gt_sem_seg=PixelData(data=label.long()), metainfo=meta) for label in labels
    ]

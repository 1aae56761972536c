"""Configs of mmsegmentation's zoo train, evaluate, stop and continue to the bit.

They are shrunk by public options alone.
"""

import dataclasses
from pathlib import Path

import pytest
from interruptions import StopAfter, losses, same, weights

from cae_seg.engine.job import DONE, STOPPED, TrainJob
from cae_seg.errors import UserError
from cae_seg.launch import rank
from cae_seg.launch.launcher import launch_train
from cae_seg.run.paths import read_history

SIDE = 64
SMALL_IMAGES = {
    "val_dataloader.dataset.pipeline.1.scale": (4 * SIDE, SIDE),
    "default_hooks.logger.interval": 1,
}
NO_PRETRAINED = {"model.pretrained": None}
NO_INIT = {"model.backbone.init_cfg": None}
NARROW_UPERNET = {"model.decode_head.channels": 16, "model.auxiliary_head.channels": 16}
TO_ADE = {
    f"{loader}_dataloader.dataset.{key}": value
    for loader, split in (("train", "training"), ("val", "validation"))
    for key, value in (
        ("type", "ADE20KDataset"),
        ("data_prefix.img_path", f"images/{split}"),
        ("data_prefix.seg_map_path", f"annotations/{split}"),
    )
}
FAST = {
    "segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py": NO_INIT,
    "hrnet/fcn_hr18s_4xb4-160k_ade20k-512x512.py": NO_PRETRAINED,
    "pspnet/pspnet_r50-d8_4xb4-160k_ade20k-512x512.py": NO_PRETRAINED
    | {"model.decode_head.channels": 16, "model.auxiliary_head.channels": 16},
}
SLOW = {
    "deeplabv3plus/deeplabv3plus_r50-d8_4xb4-160k_ade20k-512x512.py": NO_PRETRAINED,
    "swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py": NO_INIT
    | NARROW_UPERNET,
    "beit/beit-base_upernet_8xb2-160k_ade20k-640x640.py": NO_PRETRAINED | NARROW_UPERNET,
    "mae/mae-base_upernet_8xb2-amp-160k_ade20k-512x512.py": NO_PRETRAINED | NARROW_UPERNET,
    "vit/vit_deit-s16_upernet_8xb2-160k_ade20k-512x512.py": NO_PRETRAINED | NARROW_UPERNET,
    "setr/setr_vit-l_naive_8xb2-160k_ade20k-512x512.py": NO_INIT
    | {
        "model.backbone.embed_dims": 64,
        "model.backbone.num_heads": 4,
        "model.decode_head.in_channels": 64,
        **{f"model.auxiliary_head.{i}.in_channels": 64 for i in range(3)},
    },
    "convnext/convnext-tiny_upernet_8xb2-amp-160k_ade20k-512x512.py": NO_INIT | NARROW_UPERNET,
    "ddrnet/ddrnet_23-slim_in1k-pre_2xb6-120k_cityscapes-1024x1024.py": NO_INIT
    | TO_ADE
    | {
        "model.decode_head.num_classes": 150,
        "model.decode_head.loss_decode.0.class_weight": None,
        "model.decode_head.loss_decode.1.class_weight": None,
        "model.data_preprocessor.test_cfg.size_divisor": SIDE,
    },
}


def check(name: str, options: dict, folder: Path, manifest: Path) -> None:
    """Train a config in one piece and in two, and compare weights, losses and scores."""
    whole, pieces = (
        TrainJob(
            config=Path(f"mmseg::{name}"),
            work_dir=folder / run / "work",
            out=folder / run / "run.json",
            data=manifest,
            device="cpu",
            iterations=3,
            batch_size=2,
            crop_size=(SIDE, SIDE),
            cfg_options=SMALL_IMAGES | options,
        )
        for run in ("whole", "pieces")
    )
    assert launch_train(whole) == DONE
    assert rank.run(pieces, "cpu", StopAfter(2)) == STOPPED
    stopped_at = max(read_history(pieces.work_dir / "metrics.jsonl").train)
    assert stopped_at < 3
    assert rank.run(dataclasses.replace(pieces), "cpu", StopAfter(100)) == DONE
    assert same(weights(whole), weights(pieces))
    assert losses(whole) == losses(pieces)
    assert len(losses(whole)) == 3
    scores = [
        read_history(job.work_dir / "metrics.jsonl").evaluations[3] for job in (whole, pieces)
    ]
    assert scores[0]["mIoU"] == scores[1]["mIoU"] >= 0


@pytest.mark.parametrize("name", FAST, ids=lambda name: name.split("/")[0])
def test_small_family_continues_to_the_bit(name, manifest, tmp_path):
    check(name, FAST[name], tmp_path, manifest)


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW, ids=lambda name: name.split("/")[0])
def test_family_continues_to_the_bit(name, manifest, tmp_path):
    if name.startswith("convnext"):
        pytest.importorskip("mmpretrain", reason="ConvNeXt needs the optional onedl-mmpretrain")
    check(name, SLOW[name], tmp_path, manifest)


def test_a_config_that_needs_compiled_operations_is_refused_in_one_line(manifest, tmp_path):
    with pytest.raises(UserError) as caught:
        check(
            "mask2former/mask2former_r50_8xb2-160k_ade20k-512x512.py", NO_INIT, tmp_path, manifest
        )
    assert "mmdet" in str(caught.value)
    assert "\n" not in str(caught.value)

"""Cut the reference numbers of the segmentor down to what the tests need.

    python tests/golden/export_segmentor.py <folder of golden_slide.npz and golden_train.npz>

Written next to this file: slide.npz and train.npz. Weights and inputs are not stored: weights.py
draws them again.
"""

import json
import sys
from pathlib import Path

import numpy as np
import weights

HERE = Path(__file__).parent
# Every step-th element of a flattened tensor, so that at most this many are kept.
KEPT = 256


def sample(array: np.ndarray) -> np.ndarray:
    """Return at most KEPT elements, evenly spread over the flattened array."""
    return array.reshape(-1)[:: -(-array.size // KEPT)]


def export_slide(source: Path) -> None:
    """Keep logits on a grid of pixels, and the predictions whole."""
    golden = np.load(source / "golden_slide.npz")
    drawn = weights.slide()
    for name, tensor in drawn.items():
        assert np.array_equal(golden[f"sd/{name}"], tensor.numpy()), name
    assert np.array_equal(golden["x"], weights.slide_input().numpy())
    kept = {name: golden[name] for name in ("pred", "pred_flip", "pred_aug_noflip_plus_flip")}
    kept["ori_shape"] = golden["ori_shape"]
    kept["sure"] = np.packbits(golden["margin"] > 1e-4)
    kept["slide_logits"] = golden["slide_logits"][0, ::10, ::5, ::5]
    kept["rescaled_logits"] = golden["rescaled_logits_ch0_149_step10"][0, :, ::5, ::5]
    kept["head_out_crop0"] = golden["head_out_crop0"][0, ::3, ::2, ::2]
    kept["aux_out_crop0"] = golden["aux_out_crop0"][0]
    kept["whole64_prob"] = golden["whole64_prob_ch_step10_ori80x96"][0, :, ::4, ::4]
    np.savez_compressed(HERE / "slide.npz", **kept)


def export_train(source: Path) -> None:
    """Keep losses, and a spread sample of each tensor's first gradient and final value."""
    golden = np.load(source / "golden_train.npz")
    log = json.loads((source / "golden_train.json").read_text())
    for name, tensor in weights.train().items():
        assert np.array_equal(golden[f"sd0/{name}"], tensor.numpy()), name
    for mine, theirs in zip(weights.train_batches(), (golden["x"], golden["y"]), strict=True):
        assert np.array_equal(mine.numpy(), theirs)
    kept = {}
    for key in golden.files:
        group = key.partition("/")[0]
        wanted = group in ("grad0", "final_short", "final_sched160k")
        if wanted and golden[key].dtype == np.float32:
            kept[key] = sample(golden[key])
    for schedule in ("short", "sched160k"):
        for field in ("decode.loss_seg", "aux.loss_seg", "decode.acc_seg", "aux.acc_seg", "max_lr"):
            values = [step[field] for step in log[schedule]["log"]]
            kept[f"{schedule}/{field}"] = np.array(values)
    np.savez_compressed(HERE / "train.npz", **kept)


if __name__ == "__main__":
    export_slide(Path(sys.argv[1]))
    export_train(Path(sys.argv[1]))

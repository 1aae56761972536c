"""Export a fine-tuned model: to ONNX, or to a checkpoint and config for plain mmsegmentation."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cae_seg.engine.config_text import config_text
from cae_seg.engine.segmenter import Segmenter, open_segmenter
from cae_seg.errors import UserError
from cae_seg.files import atomic_write_text, atomic_writer

MOST_DIFFERENCE = 1e-3  # of logits, relative to their largest; float32 kernels differ by 1e-5
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


class OnnxModel(nn.Module):
    """What is exported: normalisation, backbone, head and resizing to the input's size."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        preprocessor = model.data_preprocessor
        self.register_buffer("mean", preprocessor.mean.view(1, 3, 1, 1).float())
        self.register_buffer("std", preprocessor.std.view(1, 3, 1, 1).float())

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N, classes, H, W) of RGB images (N, 3, H, W) with values 0 to 255."""
        features = self.model.extract_feat((images - self.mean) / self.std)
        logits = self.model.decode_head(features)
        size = images.shape[2:]
        return F.interpolate(logits, size, mode="bilinear", align_corners=self.model.align_corners)


def export_onnx(weights: Path, out: Path, *, config: Path | None = None) -> float:
    """Write a model as ONNX: windows of the size it was trained with → their logits.

    Any number of windows at once, or one where the model's own code fixes the number. The file is
    written only if onnxruntime computes the same logits as torch on two random images.

    Args:
        weights: fine-tuned checkpoint.
        out: the `.onnx` file.
        config: as of `segmenter.open_segmenter`.

    Returns:
        The largest difference of a logit from torch's, relative to the largest logit.

    Raises:
        UserError: an optional package is missing, the weights cannot be used, the model has
            operations that ONNX lacks, or the results differ by more than `MOST_DIFFERENCE`.
    """
    missing = [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"--format onnx: needs {', '.join(missing)}; pip install 'cae-seg[onnx]'")
    segmenter = open_segmenter(weights, config=config, device="cpu", accelerated=False)
    model = OnnxModel(segmenter.model).eval()
    images = torch.rand((2, 3, *_window(segmenter)), generator=torch.Generator().manual_seed(0))
    images *= 255
    with torch.inference_mode():  # before the export, which leaves tracing tensors in caches
        expected = model(images).numpy()
    content = _to_onnx(model, images)
    difference = _difference(content, images.numpy(), expected)
    if not difference <= MOST_DIFFERENCE:
        raise UserError(
            f"{out}: not written, onnxruntime differs from torch by {difference:.1e} of the largest"
            " logit; report this with the model's config"
        )
    with atomic_writer(out) as stream:
        stream.write(content)
    return difference


def _window(segmenter: Segmenter) -> tuple[int, int]:
    """Return the height and width of the windows that the model is applied to."""
    config = segmenter.config.model
    size = config.get("test_cfg", {}).get("crop_size") or config.data_preprocessor.get("size")
    if size is None:
        raise UserError("model.test_cfg.crop_size: is missing; ONNX needs the size of a window")
    return tuple(size)


def _to_onnx(model: nn.Module, images: Tensor) -> bytes:
    """Return the model for any number of images; where it fixes that, for one."""
    try:
        program = _program(model, images, {"images": {0: torch.export.Dim("batch")}})
        if isinstance(program.model.graph.inputs[0].shape[0], int):
            program = _program(model, images[:1], None)
        return program.model_proto.SerializeToString()
    except torch.onnx.errors.OnnxExporterError as error:
        raise UserError(f"this model cannot be written as ONNX: {_first_line(error)}") from error


def _program(model: nn.Module, images: Tensor, dynamic_shapes: Any) -> torch.onnx.ONNXProgram:
    with torch.inference_mode():
        return torch.onnx.export(
            model,
            (images,),
            dynamo=True,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=dynamic_shapes,
            external_data=False,
            verbose=False,
        )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _difference(content: bytes, images: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest difference, relative to the largest expected logit."""
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    batch = session.get_inputs()[0].shape[0]
    size = batch if isinstance(batch, int) else len(images)
    parts = [images[start : start + size] for start in range(0, len(images), size)]
    found = np.concatenate([session.run(None, {"images": part})[0] for part in parts])
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def export_mmseg(weights: Path, out: Path, *, config: Path | None = None) -> tuple[Path, Path]:
    """Write a checkpoint and a config that `mmseg.apis.init_model` opens.

    All types are mmsegmentation's own but our backbone and transforms, which the config imports;
    cae-seg must be installed for them.

    Args:
        weights: fine-tuned checkpoint.
        out: folder for `model.pth` and `config.py`.
        config: as of `segmenter.open_segmenter`.

    Returns:
        The checkpoint and the config.

    Raises:
        UserError: weights or config cannot be used.
    """
    segmenter = open_segmenter(weights, config=config, device="cpu", accelerated=False)
    dataset: Any = segmenter.config.val_dataloader.dataset
    settings = segmenter.config.copy()
    settings.custom_imports = {"imports": ["cae_seg.registration"], "allow_failed_imports": False}
    settings.test_pipeline = _with_files(dataset.pipeline)
    settings.test_dataloader = {"dataset": {**dataset, "pipeline": settings.test_pipeline}}
    settings.val_dataloader = settings.test_dataloader
    from mmseg.registry import DATASETS

    meta = {"dataset_meta": dict(DATASETS.get(dataset.type).METAINFO)}
    checkpoint, config_file = out / "model.pth", out / "config.py"
    state = {name: value.cpu() for name, value in segmenter.model.state_dict().items()}
    with atomic_writer(checkpoint) as stream:
        torch.save({"meta": meta, "state_dict": state}, stream)
    atomic_write_text(config_file, config_text(settings))
    return checkpoint, config_file


def _with_files(pipeline: list[Any]) -> list[Any]:
    """Return a test pipeline that begins with reading a file and needs no annotations."""
    kept = [s for s in pipeline if s["type"] not in ("LoadImageFromFile", "LoadAnnotations")]
    return [{"type": "LoadImageFromFile"}, *kept]

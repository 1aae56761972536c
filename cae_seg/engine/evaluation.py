"""Evaluation of fine-tuned weights: every validation image once, whatever the number of ranks.

Training and the `evaluate` command measure through the same class, so that they print the same
numbers for the same weights.
"""

import contextlib
import copy
import logging
import pickle
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from cae_seg.data.images import read_image
from cae_seg.data.metric import CLASSES, confusion, scores
from cae_seg.data.visualize import ade20k_palette, paint_labels, paint_panel
from cae_seg.engine.job import DONE, EvaluateJob
from cae_seg.engine.ranks import Ranks
from cae_seg.engine.runner import (
    apply_job,
    build_model,
    default_workers,
    digest,
    load_config,
    load_weights,
)
from cae_seg.errors import UserError
from cae_seg.files import atomic_write_json, atomic_writer, sha256_file
from cae_seg.progress import Progress, progress
from cae_seg.run import provenance
from cae_seg.run.deadline import Stopped, StopRequest
from cae_seg.run.logs import Voice

logger = logging.getLogger(__name__)

PANELS = 4
_IMAGES_AT_ONCE = {"cpu": 1, "cuda": 8}  # their windows share forward passes


@dataclass
class Wishes:
    """What an evaluation makes beside the scores.

    Args:
        panels: folder for image, truth and prediction side by side, of a few images.
        paintings: folder for a painting of every prediction.
        labels: whether to keep the predicted label maps.
    """

    panels: Path | None = None
    paintings: Path | None = None
    labels: bool = False


@dataclass
class Result:
    """What an evaluation found."""

    scores: dict[str, Any]  # as of `cae_seg.data.metric.scores`
    images: int
    seconds: float
    labels: dict[int, np.ndarray] = field(default_factory=dict)  # this rank's, by image number


class Evaluation:
    """The validation images of a config, ready to be predicted.

    Args:
        config: with the job applied.
        ranks: the images are shared among them.
        stop: asked between images; where it says yes, `run` raises `Stopped`.
        workers: loader processes a rank.
        aug: average over flips and the scales `tta_ratios`.
    """

    def __init__(
        self,
        config: Config,
        ranks: Ranks,
        stop: Callable[[], bool],
        *,
        workers: int | None = None,
        aug: bool = False,
    ) -> None:
        self._ranks, self._stop, self._aug = ranks, stop, aug
        self._precision = config.get("evaluation_precision", "fp32")
        description = copy.deepcopy(config.val_dataloader.dataset)
        if aug:
            description.pipeline = _scaled(description.pipeline, config.tta_ratios)
        self.dataset = DATASETS.build(description)
        self.dataset.full_init()
        self._workers = default_workers(config.val_dataloader.num_workers, workers, ranks)

    def run(self, model: nn.Module, wishes: Wishes | None = None) -> Result:
        """Predict every image once and score; the model is left in eval mode.

        Raises:
            Stopped: `stop` said so.
        """
        wishes = wishes or Wishes()
        begin = time.monotonic()
        model.eval()
        counts = torch.zeros(CLASSES, CLASSES, dtype=torch.int64, device=self._ranks.device)
        kept: dict[int, np.ndarray] = {}
        for numbers, labels, truths in self._predictions(model):
            for number, label, truth in zip(numbers, labels, truths, strict=True):
                counts += confusion(label, truth.to(label.device))
                self._keep(wishes, number, label, truth, kept)
        found = scores(self._ranks.add(counts))
        return Result(found, len(self.dataset), time.monotonic() - begin, kept)

    def _predictions(self, model: nn.Module) -> Iterator[tuple[list[int], list, list]]:
        """Yield numbers, predicted and true label maps of a few images at a time."""
        device = self._ranks.device
        loader, left = self._loader(), len(self.dataset)
        with self._progress() as bar, self._autocast():
            for batch in loader:
                if self._stop():
                    raise Stopped
                images = [normalise(model, item["inputs"], item["data_samples"]) for item in batch]
                samples = [item["data_samples"] for item in batch]
                firsts = [sample[0] if isinstance(sample, list) else sample for sample in samples]
                sizes = [tuple(sample.ori_shape[:2]) for sample in firsts]
                labels = model.predict_labels(images, sizes, aug=self._aug)
                truths = [sample.gt_sem_seg.data[0].to(device) for sample in firsts]
                yield [item["number"] for item in batch], labels, truths
                bar.update(min(len(images) * self._ranks.world, left))
                left -= len(images) * self._ranks.world

    def _loader(self) -> DataLoader:
        """Load this rank's images, every `world`-th."""
        return DataLoader(
            _Numbered(self.dataset),
            batch_size=_IMAGES_AT_ONCE[self._ranks.device.type],
            sampler=range(self._ranks.rank, len(self.dataset), self._ranks.world),
            num_workers=self._workers,
            collate_fn=list,
        )

    def _autocast(self) -> Any:
        """Return the context of mixed precision: none unless the config asks for it."""
        if self._precision == "fp32":
            return contextlib.nullcontext()
        dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}[self._precision]
        return torch.autocast(self._ranks.device.type, dtype)

    def _progress(self) -> Progress:
        total = len(self.dataset)
        return progress(total, "evaluate", "images", stream=Voice(self._ranks.first))

    def _keep(
        self, wishes: Wishes, number: int, label: Tensor, truth: Tensor, kept: dict[int, np.ndarray]
    ) -> None:
        """Paint or keep one prediction, as wished."""
        if wishes.labels:
            kept[number] = label.cpu().numpy()
        path = Path(self.dataset.get_data_info(number)["img_path"])
        if wishes.paintings is not None:
            painting = paint_labels(label.cpu().numpy(), ade20k_palette())
            _save(painting, wishes.paintings / f"{path.stem}.png")
        if wishes.panels is not None and number % -(-len(self.dataset) // PANELS) == 0:
            panel = paint_panel(
                read_image(path),
                truth.cpu().numpy(),
                label.cpu().numpy(),
                self.dataset.metainfo["classes"],
            )
            _save(panel, wishes.panels / f"{path.stem}.png")


def evaluate(job: EvaluateJob, ranks: Ranks, request: StopRequest) -> int:
    """Measure fine-tuned weights and write what the job asks for.

    Returns:
        DONE.

    Raises:
        UserError: a mistake of the user's.
        Stopped: a signal asked to.
    """
    config = apply_job(load_config(job.config, job.cfg_options, job.knobs), job)
    model = build_model(config, 0, start=False)
    load_weights(model, job.weights)
    model.to(ranks.device)
    evaluation = Evaluation(
        config, ranks, lambda: request.reason is not None, workers=job.workers, aug=job.aug_test
    )
    as_labels = job.out is not None and job.out.suffix == ".pkl"
    result = evaluation.run(model, Wishes(paintings=job.show_dir, labels=as_labels))
    if as_labels:
        _write_labels(job.out, result, ranks)
    if ranks.first:
        metrics = _metrics(job, config, evaluation, result, ranks)
        if job.out is not None and not as_labels:
            atomic_write_json(job.out, metrics)
        logger.info(
            "mIoU %.2f, mAcc %.2f, aAcc %.2f on %d images in %.0f s",
            metrics["mIoU"],
            metrics["mAcc"],
            metrics["aAcc"],
            result.images,
            result.seconds,
        )
    return DONE


def _metrics(
    job: EvaluateJob, config: Config, evaluation: Evaluation, result: Result, ranks: Ranks
) -> dict[str, Any]:
    names = evaluation.dataset.metainfo["classes"]
    found = result.scores
    return {
        "schema": 1,
        "experiment": job.name,
        "seed": job.seed,
        **{key: found[key] for key in ("mIoU", "mAcc", "aAcc")},
        "per_class": [
            {"name": name, "IoU": _number(iou), "Acc": _number(acc)}
            for name, iou, acc in zip(names, found["IoU"], found["Acc"], strict=True)
        ],
        "images": result.images,
        "seconds": result.seconds,
        "weights_sha256": sha256_file(job.weights),
        "config_sha256": digest({"model": config.model, "data": config.val_dataloader.dataset}),
        "data_fingerprint": _fingerprint(job),
        "aug_test": job.aug_test,
        "device": provenance.device_facts(ranks.device.type, ranks.world)["name"],
        "code": provenance.code(),
    }


def _write_labels(path: Path, result: Result, ranks: Ranks) -> None:
    """Write the label maps of all ranks as one list, in the order of the images."""
    shares = ranks.gather(result.labels)
    if ranks.first:
        everything = {number: label for share in shares for number, label in share.items()}
        with atomic_writer(path) as stream:
            pickle.dump([everything[number] for number in sorted(everything)], stream)


def _fingerprint(job: EvaluateJob) -> str | None:
    if job.data is None:
        return None
    from cae_seg.data.prepare.manifest import load_manifest

    return load_manifest(job.data).fingerprint


class _Numbered(Dataset):
    """A data set that tells each image's number."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, number: int) -> dict[str, Any]:
        return {**self._dataset[number], "number": number}


def normalise(model: nn.Module, image: Any, sample: Any) -> Tensor | list[Tensor]:
    """Normalise one image (3, h, w) uint8, or the same at several scales."""
    if isinstance(image, list):
        return [normalise(model, scale, s) for scale, s in zip(image, sample, strict=True)]
    batch = {"inputs": [image], "data_samples": [copy.copy(sample)]}
    return model.data_preprocessor(batch, training=False)["inputs"][0]


def _scaled(pipeline: list[dict], ratios: list[float]) -> list[dict]:
    """Turn a test pipeline into one that gives each image at several scales."""
    resize = next(step for step in pipeline if step["type"] == "Resize")
    at = pipeline.index(resize)
    sizes = [
        {**resize, "scale": tuple(int(side * ratio) for side in resize["scale"])}
        for ratio in ratios
    ]
    rest = [[step] for step in pipeline[at + 1 :]]
    return [*pipeline[:at], {"type": "TestTimeAug", "transforms": [sizes, *rest]}]


def _save(picture: np.ndarray, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from error


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)

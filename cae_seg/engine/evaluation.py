"""Evaluate fine-tuned weights: every validation image once, whatever the number of ranks.

Training and the `evaluate` command measure with the same loop and metric, so that they give the
same numbers for the same weights.
"""

import copy
import logging
import pickle
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config, ConfigDict
from mmengine.dist import gather_object, get_world_size, is_main_process
from torch import nn

from cae_seg.data.metric import ExactIoUMetric
from cae_seg.data.prepare.manifest import load_manifest
from cae_seg.engine import known_scores
from cae_seg.engine.acceleration import accelerate
from cae_seg.engine.build import build_model, build_part
from cae_seg.engine.config import load_config
from cae_seg.engine.hooks.pictures import ColourMapHook, LabelMapHook
from cae_seg.engine.hooks.progress import ProgressHook
from cae_seg.engine.identity import digest
from cae_seg.engine.job import DONE, EvaluateJob
from cae_seg.engine.resolve import apply_job
from cae_seg.engine.runner import ExactRunner
from cae_seg.engine.session import Session
from cae_seg.engine.weights import load_weights
from cae_seg.errors import UserError
from cae_seg.files import atomic_write_json, atomic_writer
from cae_seg.progress import run_label
from cae_seg.run import provenance
from cae_seg.run.deadline import StopSignal
from cae_seg.scratch import scratch_folder

logger = logging.getLogger(__name__)

_SCORES = ("mIoU", "mAcc", "aAcc")


def evaluate(job: EvaluateJob, device: torch.device, stop: StopSignal) -> int:
    """Measure fine-tuned weights and write what the job asks for.

    Returns:
        DONE.

    Raises:
        UserError: a mistake of the user's.
        Interrupted: a signal asked to.
    """
    with scratch_folder() as folder:
        return _evaluate(job, device, stop, folder)


def _evaluate(job: EvaluateJob, device: torch.device, stop: StopSignal, folder: Path) -> int:
    begin = time.monotonic()
    config = apply_job(load_config(job.config, job.cfg_options, job.knobs), job)
    known = known_scores.find(job, config, device)
    if known.metrics is not None and not (job.show_dir or _wants_labels(job)):
        if is_main_process():
            _report(job, known.metrics)
            logger.info("%s: measured before; to repeat it, delete %s", _label(job), known.note)
        return DONE
    runner = _build(config, job, Session(device=device, seed=0, stop=stop), folder)
    labels = LabelMapHook()
    if _wants_labels(job):
        runner.register_hook(labels)
    if job.show_dir is not None:
        runner.register_hook(ColourMapHook(job.show_dir))
    runner.register_hook(ProgressHook(_label(job)))
    runner.test()
    if _wants_labels(job):
        _write_labels(job.out, labels)
    if is_main_process():
        seconds = time.monotonic() - begin
        metrics = _metrics(job, config, runner, known.weights_sha256, seconds)
        known.keep(metrics)
        _report(job, metrics)
    return DONE


def _label(job: EvaluateJob) -> str:
    return run_label(job.name or job.config.stem, job.seed)


def _report(job: EvaluateJob, metrics: dict[str, Any]) -> None:
    if job.out is not None and not _wants_labels(job):
        atomic_write_json(job.out, metrics)
    numbers = (
        _label(job),
        *(metrics[key] for key in _SCORES),
        metrics["images"],
        metrics["seconds"],
    )
    logger.info("%s: mIoU %.2f, mAcc %.2f, aAcc %.2f on %d images in %.0f s", *numbers)


def _wants_labels(job: EvaluateJob) -> bool:
    return job.out is not None and job.out.suffix == ".pkl"


def _build(config: Config, job: EvaluateJob, session: Session, folder: Path) -> ExactRunner:
    """Build a runner that only tests, on the data that training validates on."""
    built = copy.deepcopy(config)
    accelerate(built)
    model = build_model(built, 0, start=False)
    load_weights(model, job.weights)
    if job.aug_test:
        model = _augmented(built, model)
    session.workers = job.workers
    session.evaluation_precision = built.get("evaluation_precision", "fp32")
    return build_tester(built, session, model, folder)


def build_tester(config: Config, session: Session, model: nn.Module, folder: Path) -> ExactRunner:
    """Build a runner that tests a model on the data that training validates on.

    Args:
        config: accelerated.
        session: what the command and the machine decide.
        model: with its weights.
        folder: where mmengine writes its log.
    """
    return ExactRunner.of(_test_config(config), session, model, folder)


def _augmented(config: Config, model: nn.Module) -> nn.Module:
    """Wrap the model for test-time augmentation, and let the data come in several views."""
    if config.get("tta_pipeline") is None or config.get("tta_model") is None:
        raise UserError(
            f"--aug-test: {config.filename} has no tta_pipeline and tta_model; add them as in "
            "mmsegmentation's configs/_base_/datasets/ade20k.py"
        )
    config.val_dataloader.dataset.pipeline = config.tta_pipeline
    return build_part(config, ConfigDict(config.tta_model, module=model))


def _test_config(config: Config) -> Config:
    """Return what `Runner.test` needs: the test is on the validation data and metric."""
    kept = ("default_scope", "env_cfg", "log_processor", "visualizer", "log_level")
    test = {key: config[key] for key in kept if key in config}
    test["test_dataloader"] = config.val_dataloader
    test["test_evaluator"] = config.get("val_evaluator") or {"type": "ExactIoUMetric"}
    test["test_cfg"] = {}
    return Config(test, filename=config.filename)


def _metrics(
    job: EvaluateJob, config: Config, runner: ExactRunner, weights_sha256: str, seconds: float
) -> dict[str, Any]:
    dataset, metric = runner.test_dataloader.dataset, _metric(runner)
    found = metric.scores
    return {
        "schema": 1,
        "experiment": job.name,
        "seed": job.seed,
        **{key: found[key] for key in _SCORES},
        "per_class": [
            {"name": name, "IoU": _number(iou), "Acc": _number(acc)}
            for name, iou, acc in zip(
                dataset.metainfo["classes"], found["IoU"], found["Acc"], strict=True
            )
        ],
        # A text per true class, pixels by predicted class: as numbers it would be a line each.
        "confusion": [" ".join(map(str, row)) for row in metric.counts.tolist()],
        "images": len(dataset),
        "seconds": seconds,
        "weights_sha256": weights_sha256,
        "config_sha256": digest({"model": config.model, "data": config.val_dataloader.dataset}),
        "data_fingerprint": load_manifest(job.data).fingerprint if job.data else None,
        "aug_test": job.aug_test,
        "device": provenance.device_info(runner.session.device.type, get_world_size())["name"],
        "code": provenance.code(),
    }


def _metric(runner: ExactRunner) -> ExactIoUMetric:
    for metric in runner.test_loop.evaluator.metrics:
        if isinstance(metric, ExactIoUMetric):
            return metric
    raise UserError("val_evaluator: has no IoUMetric, without which there is no mIoU; add one")


def _write_labels(path: Path, hook: LabelMapHook) -> None:
    """Write the label maps of all ranks as one list, in the order of the images."""
    shares = gather_object(hook.labels)
    if is_main_process():
        everything = {number: label for share in shares for number, label in share.items()}
        with atomic_writer(path) as stream:
            pickle.dump([everything[number] for number in sorted(everything)], stream)


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)

"""Scores of a run that were measured before, which stand as long as nothing they depend on changes.

The workflow evaluates a run again when its files are written again, as those of all rows over a
frozen backbone are when one of them changes.
"""

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dist import get_world_size

from cae_seg.data.prepare.manifest import load_manifest
from cae_seg.engine.identity import digest
from cae_seg.engine.job import EvaluateJob
from cae_seg.engine.ranks import run_on_main
from cae_seg.errors import UserError
from cae_seg.files import atomic_write_json, read_note, sha256_file
from cae_seg.run import provenance
from cae_seg.run.schemas import is_metrics
from cae_seg.run.work_dir import WorkDir


@dataclass(frozen=True)
class KnownScores:
    """What is known of an evaluation.

    Attributes:
        weights_sha256: of the weights to evaluate.
        note: where it is kept, in the run's work dir; None for weights from elsewhere.
        key: hash of all that the scores depend on.
        metrics: as `metrics.json` has them; None if they have to be measured.
    """

    weights_sha256: str
    note: Path | None
    key: str
    metrics: dict[str, Any] | None

    def keep(self, metrics: dict[str, Any]) -> None:
        """Keep what was measured for the next time, where the work dir can be written."""
        if self.note is not None:
            with contextlib.suppress(OSError, UserError):
                atomic_write_json(self.note, {"key": self.key, "metrics": metrics})


def find(job: EvaluateJob, config: Config, device: torch.device) -> KnownScores:
    """Look for the scores of the same weights, data, settings, code and device.

    The main process looks, once for all ranks: they have to go the same way.
    """
    return run_on_main(lambda: _find(job, config, device))


def _find(job: EvaluateJob, config: Config, device: torch.device) -> KnownScores:
    weights_sha256 = sha256_file(job.weights)
    work = WorkDir(job.weights.parent)
    if job.weights != work.weights or not work.summary_file.is_file():
        return KnownScores(weights_sha256, None, "", None)
    note = work.scores_file(aug_test=job.aug_test)
    key = digest(
        {
            "weights": weights_sha256,
            "config": dict(config),
            "data": load_manifest(job.data).fingerprint if job.data else None,
            "aug_test": job.aug_test,
            "run": (job.name, job.seed),
            "code": provenance.code_fingerprint(),
            "device": provenance.device_info(device.type, get_world_size()),
        }
    )
    kept = read_note(note)
    stands = kept.get("key") == key and is_metrics(kept.get("metrics"))
    return KnownScores(weights_sha256, note, key, kept["metrics"] if stands else None)

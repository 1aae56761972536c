"""The Python API: `cae_seg.load(weights).predict(images)`."""

from pathlib import Path
from typing import TYPE_CHECKING

from cae_seg.errors import UserError

if TYPE_CHECKING:
    from cae_seg.engine.segmenter import Segmenter

MLFLOW_SCHEMES = ("runs:/", "models:/", "mlflow-artifacts:/")


def load(
    weights: str | Path, *, config: str | Path | None = None, device: str = "auto"
) -> "Segmenter":
    """Return a fine-tuned model that segments images.

    Args:
        weights: a checkpoint file, the folder of a finished run (`results/<experiment>/seed_<n>`),
            or the MLflow address of a run's model, `runs:/<run id>/model`.
        config: of the model; by default the one kept in the weights. A config file is a program
            and is run; the text in the weights is read as data.
        device: "auto", "cuda" or "cpu".

    Raises:
        cae_seg.errors.UserError: there are no such weights, or they cannot be used.
    """
    from cae_seg.engine.segmenter import open_segmenter

    chosen = None if config is None else Path(config)
    return open_segmenter(_weights_file(weights), config=chosen, device=device)


def _weights_file(weights: str | Path) -> Path:
    if str(weights).startswith(MLFLOW_SCHEMES):
        from cae_seg.tracking.models import fetch_weights

        return fetch_weights(str(weights))
    path = Path(weights)
    if not path.is_dir():
        return path
    from cae_seg.run.paths import RunDir

    found = RunDir(path).work.weights
    if found.is_file():
        return found
    raise UserError(f"{path}: contains no {found.name}; name a checkpoint or a finished run")

"""Weights as MLflow model artefacts: written beside a run, opened from its address."""

from pathlib import Path
from typing import Any

from cae_seg.errors import UserError
from cae_seg.tracking.store import (
    StoreUnavailable,
    ensure_store,
    quieten_mlflow,
    reaching_mlflow,
    tracking_uri,
)

NAME = "model"


def write_model(weights: Path, folder: Path) -> None:
    """Write an MLflow model of the generic Python flavour with `weights` in it.

    Args:
        weights: of a finished run.
        folder: to be made.
    """
    quieten_mlflow()
    import mlflow.pyfunc

    mlflow.pyfunc.save_model(
        folder,
        loader_module=__name__,
        data_path=str(weights),
        pip_requirements=["cae-seg"],
    )


def _load_pyfunc(data_path: str) -> Any:
    """Return what MLflow wraps: a model with `predict(images)`."""
    from cae_seg.engine.segmenter import open_segmenter

    return open_segmenter(Path(data_path))


def fetch_weights(address: str) -> Path:
    """Return the weights of a model in MLflow, downloaded if they are not on this machine.

    Raises:
        UserError: MLflow cannot be reached, or there is no such model.
    """
    uri = tracking_uri()
    try:
        ensure_store(uri)
        with reaching_mlflow():
            import mlflow

            mlflow.set_tracking_uri(uri)
            folder = Path(mlflow.artifacts.download_artifacts(address))
    except StoreUnavailable as error:
        raise UserError(f"{address}: {error}; check MLFLOW_TRACKING_URI") from error
    found = sorted(folder.rglob("*.pth")) if folder.is_dir() else [folder]
    if not found:
        raise UserError(f"{address}: contains no weights; name the model of a run, runs:/ID/model")
    return found[0]

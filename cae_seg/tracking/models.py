"""Weights as MLflow model artefacts: written with a run, opened from its address."""

from pathlib import Path
from typing import Any

from cae_seg.errors import UserError
from cae_seg.tracking.store import (
    StoreUnavailable,
    artifact_folder,
    ensure_store,
    make_client,
    quieten_mlflow,
    reaching_mlflow,
    sqlite_path,
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
            folder = _embedded(address, uri)
            folder = folder or Path(mlflow.artifacts.download_artifacts(address))
    except StoreUnavailable as error:
        raise UserError(f"{address}: {error}; check MLFLOW_TRACKING_URI") from error
    found = sorted(folder.rglob("*.pth")) if folder.is_dir() else [folder]
    if not found:
        raise UserError(f"{address}: contains no weights; name the model of a run, runs:/ID/model")
    return found[0]


def _embedded(address: str, uri: str) -> Path | None:
    """Return the folder of a model in an embedded store; None where a server keeps it."""
    if sqlite_path(uri) is None:
        return None
    client = make_client(uri)
    if address.startswith("models:/"):
        name, version = address.removeprefix("models:/").rsplit("/", 1)
        address = client.get_model_version_download_uri(name, version)
    if address.startswith("runs:/"):
        run_id, _, path = address.removeprefix("runs:/").partition("/")
        address = f"{client.get_run(run_id).info.artifact_uri}/{path}"
    return artifact_folder(uri, address)

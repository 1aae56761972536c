"""Which MLflow, and the embedded one: an SQLite file under `results/` with artifacts next to it."""

import contextlib
import json
import logging
import os
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cae_seg.errors import UserError
from cae_seg.files import atomic_write_text, read_note
from cae_seg.locks import FileLock
from cae_seg.redaction import redact, redact_uri

EXPERIMENT = "cae-seg"
VIEW = "cae-seg"
COLUMNS = (
    *(f"params.`{name}`" for name in ("backbone", "pretraining_epochs", "learning_rate", "seed")),
    "metrics.`mIoU`",
    "tags.`gpu_hours`",
)
# On the chart tab, in this order: scores first. The first and the last name are the UI's own.
CHART_SECTIONS = ("Model metrics", "train", "speed", "System metrics")
LOCK_SECONDS = 600.0
REPORT_SECONDS = 5.0  # a wait for the lock that lasts longer is reported
# Python's module of a database's driver → what to install, where the names differ.
DRIVERS = {"psycopg2": "psycopg2-binary", "MySQLdb": "mysqlclient"}
# Relative to the folder that the server is given: the store may be moved with its artifacts.
ARTIFACTS = "mlflow-artifacts:/"
# MLflow's own retries take many minutes; ours know how long a caller is willing to wait.
QUIET_MLFLOW = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "GIT_PYTHON_REFRESH": "quiet",
}


logger = logging.getLogger(__name__)


class StoreUnavailable(Exception):
    """MLflow could not be reached or refused.

    Attributes:
        transient: whether waiting may help (a server that is down, a locked database).
    """

    def __init__(self, message: str, *, transient: bool) -> None:
        super().__init__(message)
        self.transient = transient


def tracking_uri() -> str:
    """Return `MLFLOW_TRACKING_URI`, or the embedded store below the working folder."""
    default = f"sqlite:///{Path('results/mlflow.db').absolute()}"
    return os.environ.get("MLFLOW_TRACKING_URI") or default


def is_server(uri: str) -> bool:
    """Say whether `uri` names a tracking server, which can take a live stream."""
    return uri.startswith(("http://", "https://"))


def sqlite_path(uri: str) -> Path | None:
    """Return the file of an SQLite store, None for any other store."""
    prefix = "sqlite:///"
    return Path(uri.removeprefix(prefix)) if uri.startswith(prefix) else None


def quieten_mlflow() -> None:
    """Set MLflow up to send nothing home, to give up early and to leave the terminal alone."""
    for name, value in QUIET_MLFLOW.items():
        os.environ.setdefault(name, value)
    for name in ("alembic", "urllib3"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    # MLflow reads its level when it is imported, which may have been before.
    logging.getLogger("mlflow").setLevel(os.environ["MLFLOW_LOGGING_LEVEL"].upper())


def ensure_store(uri: str | None = None) -> None:
    """Create the embedded store, or bring an older one up to date.

    Processes that make first use of a fresh SQLite database together break it for good, so every
    use of it passes here first, one at a time. Before an upgrade the old file is copied.

    Raises:
        StoreUnavailable: the database cannot be written, is locked all the time or is none of
            this MLflow's, or `uri` is no address.
    """
    uri = uri or tracking_uri()
    _check_address(uri)
    path = sqlite_path(uri)
    if path is None:
        return
    quieten_mlflow()
    with _one_at_a_time(path):
        if _stamp(path) != _read_stamp(path):
            _upgrade(uri, path)
            find_experiment(make_client(uri), uri)
            atomic_write_text(_stamp_path(path), json.dumps(_stamp(path)))


def _check_address(uri: str) -> None:
    """Refuse addresses that MLflow would fail at with other words, or lose everything in."""
    if is_server(uri):
        try:
            parts = urlsplit(uri)
            usable = bool(parts.hostname) and parts.port != 0
        except ValueError:
            usable = False
        if not usable:
            raise StoreUnavailable("this is not a valid address", transient=False)
    elif uri.startswith("sqlite:") and uri.rpartition(":///")[2] in ("", uri, ":memory:"):
        raise StoreUnavailable(
            "no file is named; write sqlite:////folder/mlflow.db", transient=False
        )
    elif (path := sqlite_path(uri)) and path.exists() and not path.is_file():
        raise StoreUnavailable("this is not a regular file", transient=False)


@contextlib.contextmanager
def _one_at_a_time(path: Path) -> Iterator[None]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path.with_name(f"{path.name}.lock"))

        def report(owner: str) -> None:
            logger.warning("%s: %s has it; waiting %.0f s at most", lock.path, owner, LOCK_SECONDS)

        with lock.held(LOCK_SECONDS, report, quiet=REPORT_SECONDS), reaching_mlflow():
            yield
    except TimeoutError as error:
        raise StoreUnavailable(str(error), transient=True) from error
    except (OSError, UserError) as error:
        raise StoreUnavailable(
            f"{path.parent} cannot be written: {error}", transient=False
        ) from error


def _stamp_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.ready")


def _stamp(path: Path) -> dict[str, str | None]:
    """Say which MLflow uses which schema, without the seconds that asking MLflow takes."""
    from importlib.metadata import version

    return {"mlflow": version("mlflow"), "schema": _schema(path)}


def _read_stamp(path: Path) -> dict[str, str]:
    return read_note(_stamp_path(path))


def _schema(path: Path) -> str | None:
    if not path.is_file():
        return None
    with contextlib.closing(sqlite3.connect(path, timeout=5)) as database:
        try:
            row = database.execute("SELECT version_num FROM alembic_version").fetchone()
        except sqlite3.OperationalError as error:
            if "no such table" in str(error):
                return None
            raise
    return row[0] if row else None


def _upgrade(uri: str, path: Path) -> None:
    import mlflow.db
    from alembic.util.exc import CommandError

    before = _schema(path)
    if before is None and _is_foreign(path):
        raise StoreUnavailable("this is an SQLite database of another program", transient=False)
    if before is not None:
        with (
            contextlib.closing(sqlite3.connect(path)) as old,
            contextlib.closing(sqlite3.connect(f"{path}.before-upgrade")) as copy,
        ):
            old.backup(copy)
    try:
        mlflow.db.commands(["upgrade", uri], standalone_mode=False)
    except CommandError as error:
        raise StoreUnavailable(
            f"another version of MLflow wrote it (schema {before}); install that or move the file",
            transient=False,
        ) from error
    finally:
        if before in (None, _schema(path)):
            Path(f"{path}.before-upgrade").unlink(missing_ok=True)


def _is_foreign(path: Path) -> bool:
    """Tell whether a database holds tables and none that MLflow, maybe killed, makes first."""
    if not path.is_file():
        return False
    with contextlib.closing(sqlite3.connect(path, timeout=5)) as database:
        rows = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
    return bool(rows) and not {("alembic_version",), ("experiments",)} & set(rows)


def make_client(uri: str) -> Any:
    """Return an `MlflowClient` for `uri`.

    Raises:
        StoreUnavailable: MLflow has no such kind of store, the store is of another version of
            MLflow, or its database's driver is missing.
    """
    quieten_mlflow()
    import sqlalchemy.exc
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    try:
        return MlflowClient(uri, registry_uri=uri)
    except ImportError as error:
        driver = DRIVERS.get(error.name or "", error.name or str(error))
        raise StoreUnavailable(
            f"its driver is not installed; run: pip install {driver}", transient=False
        ) from error
    except MlflowException as error:
        if error.__cause__ is not None:  # a database that is locked or down
            raise
        raise StoreUnavailable(_gist(error), transient=False) from error
    except (sqlalchemy.exc.ArgumentError, ValueError) as error:  # of the address
        raise StoreUnavailable(_gist(error), transient=False) from error


def find_experiment(client: Any, uri: str) -> str:
    """Return the id of our MLflow experiment, created if need be."""
    from mlflow.exceptions import MlflowException

    artifacts = ARTIFACTS if sqlite_path(uri) else None
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return client.create_experiment(name, artifact_location=artifacts, tags=_view())
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = client.get_experiment_by_name(name)
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return found.experiment_id


def open_artifacts(client: Any, uri: str, run_id: str) -> Any:
    """Return the artifact repository of a run (MLflow's `ArtifactRepository`)."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    address = client.get_run(run_id).info.artifact_uri
    folder = artifact_folder(uri, address)
    return get_artifact_repository(folder.as_uri() if folder else address, tracking_uri=uri)


def artifact_folder(uri: str, address: str) -> Path | None:
    """Return the folder of artifacts in an embedded store; None where a server keeps them.

    Args:
        uri: of the store.
        address: of the artifacts, as MLflow has it.
    """
    path = sqlite_path(uri)
    if path is None or not address.startswith(ARTIFACTS):
        return None
    return _artifact_root(path) / address.removeprefix(ARTIFACTS).lstrip("/")


def _artifact_root(path: Path) -> Path:
    return path.with_name("mlartifacts").absolute()


def _view() -> dict[str, str]:
    """Return the tags by which MLflow's UI shows our experiment with the columns to compare by."""
    state = {
        "searchFilter": "",
        "orderByKey": "metrics.`mIoU`",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": COLUMNS,
        "compareRunCharts": [],  # the UI adds one per metric to the section of its name
        "compareRunSections": [
            {"uuid": name, "name": name, "display": True, "isGenerated": True, "isReordered": False}
            for name in CHART_SECTIONS
        ],
        "isAccordionReordered": True,  # else the UI sorts the sections by name
    }
    return {
        "mlflow.experimentKind": "custom_model_development",
        f"mlflow.sharedViewState.{VIEW}": json.dumps(state),
    }


@contextlib.contextmanager
def reaching_mlflow() -> Iterator[None]:
    """Turn what MLflow, its database and its transport raise into `StoreUnavailable`."""
    import sqlalchemy.exc
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        refused = error.error_code in (
            "INVALID_PARAMETER_VALUE",
            "BAD_REQUEST",
            "PERMISSION_DENIED",
        )
        # Another process was quicker to write the same, e.g. the data set that runs share.
        overtaken = isinstance(error.__cause__, sqlalchemy.exc.IntegrityError)
        transient = overtaken or (_is_transient(error) and not refused)
        raise StoreUnavailable(_gist(error), transient=transient) from error
    except (sqlalchemy.exc.SQLAlchemyError, sqlite3.Error, OSError) as error:
        raise StoreUnavailable(_gist(error), transient=_is_transient(error)) from error


_LASTING = ("readonly database", "unable to open", "malformed", "not a database")


def _is_transient(error: Exception) -> bool:
    text = str(error).lower()
    return not any(word in text for word in _LASTING)


def _gist(error: Exception) -> str:
    """Return the line of a message that says most, without passwords."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    line = next((line for line in lines if "Error" in line), lines[0])[:300]
    return redact(line)


def ui_command(uri: str | None = None, *, port: int = 5000) -> list[str]:
    """Return the command that serves the MLflow UI of the embedded store, on loopback only.

    For any other database the command reads its address from `MLFLOW_BACKEND_STORE_URI`.

    Raises:
        UserError: `MLFLOW_TRACKING_URI` names a server, which has a UI of its own.
    """
    uri = uri or tracking_uri()
    if is_server(uri):
        raise UserError(f"MLFLOW_TRACKING_URI: the UI of this server is at {redact_uri(uri)}")
    with _naming(uri):
        ensure_store(uri)
    path = sqlite_path(uri)
    root = ["--artifacts-destination", str(_artifact_root(path))] if path else []
    options = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    # `env` and not our own environment, because the command outlives this process.
    quiet = ["env", "MLFLOW_DISABLE_TELEMETRY=true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false"]
    # A database's address may contain a password, which the list of processes would show.
    store = ["--backend-store-uri", uri] if path else []
    return [*quiet, sys.executable, "-m", "mlflow", "server", *store, *root, *options]


@contextlib.contextmanager
def _naming(uri: str) -> Iterator[None]:
    """Report a store that cannot be used as a mistake of the user's."""
    try:
        yield
    except StoreUnavailable as error:
        remedy = "free or move the file" if sqlite_path(uri) else "check MLFLOW_TRACKING_URI"
        message = str(error) if ";" in str(error) else f"{error}; {remedy}"
        raise UserError(f"{redact_uri(uri)}: {message}") from error


def ui_address(uri: str | None = None, *, port: int = 5000) -> str:
    """Return where the UI that `ui_command` serves lists our runs, with our columns.

    Raises:
        UserError: the store cannot be used.
    """
    uri = uri or tracking_uri()
    with _naming(uri), reaching_mlflow():
        number = find_experiment(make_client(uri), uri)
    page = f"experiments/{number}/runs?workflowType=machine_learning&viewStateShareKey={VIEW}"
    return f"http://127.0.0.1:{port}/#/{page}"

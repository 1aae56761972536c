import contextlib
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from waiting import wait_until

from cae_seg.tracking import ensure_store


class Server:
    """A real `mlflow server` on loopback that can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.database = f"sqlite:///{folder / 'server.db'}"
        self._process: subprocess.Popen | None = None

    def start(self) -> None:
        ensure_store(self.database)
        environment = os.environ | {
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"]
        command += ["--port", str(self.port), "--workers", "1"]
        command += ["--backend-store-uri", self.database]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        log = (self.folder / "server.log").open("a")
        self._process = subprocess.Popen(
            command, env=environment, stdout=log, stderr=log, start_new_session=True
        )
        wait_until("the server answers", self.answers)

    def answers(self) -> bool:
        try:
            return requests.get(f"{self.uri}/health", timeout=2).ok
        except requests.RequestException:
            return False

    def kill(self) -> None:
        """Kill the server and its workers without warning."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


@pytest.fixture(scope="session")
def _shared_server(tmp_path_factory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server"))
    server.start()
    yield server
    server.kill()


@pytest.fixture
def server(_shared_server, monkeypatch, tmp_path) -> Server:
    """A server that lives through all tests, with an experiment of this test's own."""
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", tmp_path.name)
    return _shared_server


@pytest.fixture
def mortal_server(tmp_path, fresh_store) -> Iterator[Server]:
    """A server of one test's own, not started yet."""
    folder = tmp_path / "server"
    folder.mkdir()
    shutil.copy(fresh_store / "mlflow.db", folder / "server.db")
    shutil.copy(fresh_store / "mlflow.db.ready", folder / "server.db.ready")
    server = Server(folder)
    yield server
    server.kill()


@pytest.fixture(scope="session")
def fresh_store(tmp_path_factory) -> Path:
    """An empty store to copy: making one takes seconds."""
    folder = tmp_path_factory.mktemp("store")
    ensure_store(f"sqlite:///{folder / 'mlflow.db'}")
    with contextlib.closing(sqlite3.connect(folder / "mlflow.db")) as database, database:
        database.execute("DELETE FROM experiment_tags")
        database.execute("DELETE FROM experiments")
    return folder


@pytest.fixture
def no_store(tmp_path) -> str:
    """The address of an embedded store that does not exist yet."""
    return f"sqlite:///{tmp_path / 'results' / 'mlflow.db'}"


@pytest.fixture
def store(no_store, fresh_store, tmp_path) -> str:
    """The address of an embedded store that is ready for use."""
    folder = tmp_path / "results"
    folder.mkdir(exist_ok=True)
    for name in ("mlflow.db", "mlflow.db.ready"):
        shutil.copy(fresh_store / name, folder / name)
    return no_store


@pytest.fixture(autouse=True)
def _no_tracker_of_the_users(monkeypatch, tmp_path):
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)

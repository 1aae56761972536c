"""A store that is none, of another MLflow, locked or without its driver: one line, no file touched.

`track` reports it and succeeds, since the same command delivers everything later.
"""

import json
import os
import re
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from fake_runs import make_run
from filelock import FileLock
from PIL import Image
from tracked import assert_whole, only_run

from cae_seg.cli import main
from cae_seg.errors import UserError
from cae_seg.tracking import track, ui_command


@pytest.fixture
def run(tmp_path) -> Path:
    return make_run(tmp_path / "results" / "row" / "seed_0")


def both_commands(run: Path, capfd, caplog) -> tuple[str, str]:
    """Run `ui` and `track`, neither of which may wait; return the one line of each."""
    import mlflow  # noqa: F401  # its logging is set up before ours, as in a notebook

    assert main(["ui"]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    caplog.clear()
    assert main(["track", str(run)]) == 0
    (warning,) = caplog.messages
    assert "NOT DELIVERED" in warning
    assert capfd.readouterr().out == ""
    assert json.loads((run / "tracked.json").read_text())["delivered"] is False
    return line, warning


def write_text(path: Path) -> None:
    path.write_text("my notes\n" * 1000)


def write_picture(path: Path) -> None:
    Image.new("RGB", (64, 64)).save(path, "JPEG")


def write_other_database(path: Path) -> None:
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("CREATE TABLE bookmarks (address TEXT)")


def write_newer(path: Path) -> None:
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("CREATE TABLE experiments (x TEXT)")
        database.execute("CREATE TABLE alembic_version (version_num TEXT)")
        database.execute("INSERT INTO alembic_version VALUES ('f00dfeedbeef')")


def write_truncated(path: Path) -> None:
    write_newer(path)
    path.write_bytes(path.read_bytes()[:5000])


NO_STORES = {
    "text": (write_text, "file is not a database"),
    "picture": (write_picture, "file is not a database"),
    "database of another program": (write_other_database, "database of another program"),
    "newer": (write_newer, r"another version of MLflow wrote it \(schema f00dfeedbeef\)"),
    "truncated": (write_truncated, "database disk image is malformed"),
    "folder": (Path.mkdir, "not a regular file"),
    "pipe": (os.mkfifo, "not a regular file"),
}


@pytest.mark.parametrize("kind", NO_STORES)
def test_a_file_that_is_no_store_is_one_line_and_stays_as_it_is(kind, run, tmp_path, capfd, caplog):
    write, message = NO_STORES[kind]
    store = tmp_path / "results" / "mlflow.db"
    write(store)
    before = store.read_bytes() if store.is_file() else None
    for line in both_commands(run, capfd, caplog):
        assert str(store) in line
        assert re.search(message, line)
    assert before is None or store.read_bytes() == before
    assert set(os.listdir(store.parent)) <= {
        *("mlflow.db", "mlflow.db.lock", "mlflow.db.lock.json", "row")
    }


SECRET = "s3cret"
NO_ADDRESSES = {
    f"postgresql://me:{SECRET}@127.0.0.1:9/x": "pip install psycopg2-binary",
    f"postgresql+psycopg://me:{SECRET}@127.0.0.1:9/x": "pip install psycopg",
    f"mysql://me:{SECRET}@127.0.0.1:9/x": "pip install mysqlclient",
    f"mysql+pymysql://me:{SECRET}@127.0.0.1:9/x": "pip install pymysql",
    "oracle://h/x": "unsupported URI",
    "foo://x": "unsupported URI",
    "notes": "filesystem tracking backend",
    "sqlite://": "no file is named",
    "sqlite:///": "no file is named",
    "sqlite:///:memory:": "no file is named",
    "sqlite:////dev/full": "not a regular file",
}


@pytest.mark.parametrize("uri", NO_ADDRESSES)
def test_an_address_that_cannot_be_used_is_one_line(uri, run, monkeypatch, capfd, caplog):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    for line in both_commands(run, capfd, caplog):
        assert NO_ADDRESSES[uri] in line
        assert SECRET not in line


@pytest.mark.parametrize("uri", ["http://[::1", "http://h:99999", "http://h:0", "http://"])
def test_a_malformed_address_of_a_server_is_not_waited_for(uri, run, monkeypatch, caplog):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert main(["track", str(run)]) == 0
    (warning,) = caplog.messages
    assert "not a valid address" in warning


@pytest.mark.slow
def test_an_empty_file_becomes_a_store(run, tmp_path, store):
    (tmp_path / "results" / "mlflow.db").write_bytes(b"")
    assert track(run, uri=store)["delivered"]
    assert_whole(store, only_run(store))


def test_a_locked_store_is_one_line_after_a_bounded_wait(store, tmp_path):
    with closing(sqlite3.connect(tmp_path / "results" / "mlflow.db")) as holder:
        holder.execute("BEGIN EXCLUSIVE")
        with pytest.raises(UserError, match=r"mlflow\.db: database is locked; free or move"):
            ui_command(store)


def test_a_store_that_another_process_sets_up_is_waited_for_with_a_message(
    store, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr("cae_seg.tracking.store.REPORT_SECONDS", 0.1)
    monkeypatch.setattr("cae_seg.tracking.store.LOCK_SECONDS", 0.2)
    with (
        FileLock(f"{tmp_path}/results/mlflow.db.lock"),
        pytest.raises(UserError, match="is held by another process"),
    ):
        ui_command(store)
    assert "mlflow.db.lock: another process has it; waiting 0 s at most" in caplog.text

"""Locks of work dirs and GPUs on the file systems of clusters, in containers, in shared folders."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cae_seg.errors import UserError
from cae_seg.launch.gpus import lock_folder
from cae_seg.locks import FileLock

# Argument: the lock file. Prints whether the lock was got and what others hear; holds it.
OWNER = """
import sys
from pathlib import Path
from cae_seg import locks
locks.LEASE_SECONDS = 3.0
lock = locks.FileLock(Path(sys.argv[1]))
held = lock.held_elsewhere()
print(lock.acquire(float(sys.argv[2])), held, lock.owner(), flush=True)
sys.stdin.read()
"""
FILE_SYSTEMS = ["local", "nfs4", "lustre"]


@pytest.fixture(scope="session")
def shim(tmp_path_factory) -> Path:
    """A library that makes `flock` and `gethostname` answer as elsewhere."""
    library = tmp_path_factory.mktemp("shim") / "file_systems.so"
    source = Path(__file__).with_name("file_systems.c")
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return library


@pytest.fixture
def start(shim, tmp_path):
    """Start owners of one lock; those left are killed."""
    started = []

    def owner(file_system: str, host: str, wait: float = 0.0) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, "-c", OWNER, str(tmp_path / "lock"), str(wait)],
            env={
                **os.environ,
                "LD_PRELOAD": str(shim),
                "FILE_SYSTEM": file_system,
                "HOST_NAME": host,
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield owner
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.parametrize("file_system", FILE_SYSTEMS)
def test_one_process_has_the_lock_and_a_killed_one_frees_it(start, file_system):
    first = start(file_system, "node1")
    assert first.stdout.readline().startswith("True")
    second = start(file_system, "node2").stdout.readline()
    assert second.startswith("False True")
    assert f"process {first.pid} on node1" in second
    first.kill()
    first.wait()
    assert start(file_system, "node1", 30.0).stdout.readline().startswith("True")


@pytest.mark.parametrize("file_system", FILE_SYSTEMS)
def test_a_lock_of_a_container_with_another_host_name_becomes_free(start, file_system):
    first = start(file_system, "3f2a9c")
    assert first.stdout.readline().startswith("True")
    first.kill()
    first.wait()
    assert start(file_system, "b81d07", 30.0).stdout.readline().startswith("True")


def test_the_owner_of_a_lease_keeps_it_beyond_its_length(start):
    first = start("lustre", "node1")
    assert first.stdout.readline().startswith("True")
    assert start("lustre", "node2", 5.0).stdout.readline().startswith("False")
    assert first.poll() is None


def test_a_lock_that_is_a_link_is_refused(tmp_path):
    (tmp_path / "lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="symbolic link"):
        FileLock(tmp_path / "lock").acquire()
    assert not (tmp_path / "elsewhere").exists()


def test_folders_of_gpu_locks_are_no_links_and_not_for_everyone(tmp_path, monkeypatch):
    folder = tmp_path / "locks"
    monkeypatch.setenv("CAE_SEG_GPU_LOCK_DIR", str(folder))
    assert lock_folder() == folder
    assert folder.stat().st_mode & 0o077 == 0
    folder.chmod(0o777)
    with pytest.raises(UserError, match="every user may write"):
        lock_folder()
    folder.rmdir()
    (tmp_path / "real").mkdir()
    folder.symlink_to(tmp_path / "real")
    with pytest.raises(UserError, match="link"):
        lock_folder()


def test_a_full_disk_does_not_prevent_a_lock(tmp_path, monkeypatch):
    monkeypatch.setattr("cae_seg.locks.atomic_write_json", _no_space)
    lock = FileLock(tmp_path / "lock")
    assert lock.acquire()
    assert not FileLock(tmp_path / "lock").acquire()


def _no_space(path: Path, value: object) -> None:
    raise OSError(28, "No space left on device")

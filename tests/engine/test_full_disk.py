"""On a full disk, a real one, each command says so in one line and leaves nothing half-made."""

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from data.ade_tree import make_tree, zip_tree
from fake_runs import make_run

from cae_seg.cli import main
from cae_seg.engine.build import build_backbone
from cae_seg.engine.config import load_config

SHEET = """
experiments:
  - {name: row, backbone: ViT-B, pretraining_epochs: 800, checkpoint: a.pth, learning_rate: 1e-4,
     config: recipe.py}
"""


@pytest.fixture(scope="module")
def mounted(tmp_path_factory) -> Iterator[Path]:
    """A file system of its own, of a few pages."""
    folder = tmp_path_factory.mktemp("disk")
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this user may not mount a file system")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def disk(mounted) -> Iterator[Path]:
    """The root of a full file system."""
    for entry in mounted.iterdir():
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    fill(mounted)
    return mounted


def fill(disk: Path, room: int = 0) -> None:
    """Leave so many kilobytes of a file system."""
    with contextlib.suppress(OSError), open(disk / "ballast", "wb", buffering=0) as stream:
        while stream.write(bytes(4096)):
            pass
    os.truncate(disk / "ballast", (disk / "ballast").stat().st_size - 1024 * room)


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A working folder with a finished run and its sheet, on a disk that has room."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    make_run(tmp_path / "results" / "row" / "seed_0")
    Path("recipe.py").write_text("")
    Path("sheet.yaml").write_text(SHEET)
    return tmp_path


@pytest.fixture(scope="module")
def words(config, manifest, undisturbed, tmp_path_factory) -> dict[str, Path]:
    """What the words in capitals of the commands below stand for."""
    folder = tmp_path_factory.mktemp("words")
    tree = make_tree(folder)
    state = build_backbone(load_config(config, {})).state_dict()
    torch.save({"model": state}, folder / "checkpoint.pth")
    return {
        "ARCHIVE": zip_tree(tree, folder / "archive.zip"),
        "TREE": tree,
        "IMAGES": tree / "images" / "validation",
        "CHECKPOINT": folder / "checkpoint.pth",
        "CONFIG": config,
        "DATA": manifest,
        "WEIGHTS": undisturbed.work_dir / "weights.pth",
    }


TRAIN = "train CONFIG --data DATA --device cpu --iterations 1 --work-dir"
EVALUATE = "evaluate CONFIG WEIGHTS --data DATA --device cpu"
METRICS = "results/row/seed_0/metrics.json"
COMMANDS = [
    "prepare demo --checkpoints c --archive DISK/a.zip",
    "prepare demo --archive a.zip --checkpoints DISK/c",
    "prepare data --source ARCHIVE --manifest m.json --root DISK/data",
    "prepare data --source TREE --root data --manifest DISK/m.json",
    "prepare checkpoint CHECKPOINT --config CONFIG --out DISK/report.json",
    f"{TRAIN} DISK/work",
    f"{TRAIN} work --out DISK/run.json",
    f"{EVALUATE} --out DISK/m.json",
    f"{EVALUATE} --out DISK/m.pkl",
    f"{EVALUATE} --show-dir DISK/show",
    "predict WEIGHTS IMAGES --device cpu --out DISK/out",
    "export WEIGHTS --format mmseg --out DISK/model",
    f"aggregate-seeds {METRICS} --out DISK/s.json",
    "table --sheet sheet.yaml --out DISK/table.md",
    "table --sheet sheet.yaml --csv DISK/table.csv",
    "table --sheet sheet.yaml --pages DISK/pages",
    "figures --sheet sheet.yaml --out DISK/figures",
    "init DISK/project",
    pytest.param("export WEIGHTS --out DISK/model.onnx", marks=pytest.mark.slow),
    pytest.param("track results/row/seed_0 --out DISK/tracked.json", marks=pytest.mark.slow),
    pytest.param("figures --sheet sheet.yaml --out f --claim DISK/c.md", marks=pytest.mark.slow),
]


def run(command: str, words: dict[str, Path], disk: Path) -> int:
    """Run a command in a child, whose libraries' open files end with it; return its status."""
    arguments = [str(words.get(word, word)).replace("DISK", str(disk)) for word in command.split()]
    child = os.fork()
    if child == 0:
        code = 99
        try:
            code = main(arguments)
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def files(folder: Path) -> set[str]:
    """Return the files with any content, other than that which fills the disk."""
    found = (path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)
    return {path.name for path in found} - {"ballast"}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_full_disk_is_one_line_and_nothing_is_half_made(command, disk, place, words, capfd):
    assert run(command, words, disk) == 2
    text = capfd.readouterr().err
    assert "Traceback" not in text
    (line,) = (line for line in text.splitlines() if line.startswith("cae-seg: error: "))
    assert str(disk) in line
    assert "make room" in line
    assert files(disk) == set()
    assert not [path for path in disk.rglob(".*") if not path.name.startswith(".prepare.lock")]


def test_training_continues_without_room_for_checkpoints_and_ends_once_there_is_room(
    disk, place, words, capfd
):
    command = TRAIN.replace("--iterations 1", "--iterations 4") + " DISK/work --out run.json"
    fill(disk, room=120)
    assert run(command, words, disk) == 2
    text = capfd.readouterr().err
    assert "iter_3.pth: cannot be written (No space left on device); make room; the older" in text
    assert text.splitlines()[-1].startswith(f"cae-seg: error: {disk}/work/weights.pth: cannot be")
    assert not Path("run.json").exists()
    (disk / "ballast").unlink()
    assert run(command, words, disk) == 0
    assert Path("run.json").exists()


@pytest.mark.parametrize("command", ["clean results --delete", "status --sheet sheet.yaml"])
def test_commands_that_write_no_file_work_on_a_full_disk(command, disk, place, words):
    states = disk / "results" / "row" / "seed_0" / "work" / "checkpoints"
    (disk / "ballast").unlink()
    make_run(disk / "results" / "row" / "seed_0")
    states.mkdir()
    fill(disk)
    shutil.rmtree("results")
    Path("results").symlink_to(disk / "results")
    assert run(command, words, disk) == 0
    assert states.exists() == ("--delete" not in command)


@pytest.mark.parametrize(
    "command", [["completion", "bash"], ["status", "--sheet", "sheet.yaml"], ["clean"]]
)
def test_an_output_that_is_redirected_to_a_full_disk_is_one_line(command, place):
    with open("/dev/full", "w") as full:
        answer = subprocess.run(["cae-seg", *command], stdout=full, stderr=subprocess.PIPE)
    assert answer.returncode == 2
    (line,) = answer.stderr.decode().splitlines()
    assert "cannot be written (No space left on device); make room" in line


@pytest.mark.slow
def test_a_message_that_cannot_be_written_does_not_end_a_training(place, words):
    command = f"{TRAIN} work"
    arguments = [str(words.get(word, word)) for word in command.split()]
    with open("/dev/full", "w") as full:
        assert subprocess.run(["cae-seg", *arguments], stderr=full).returncode == 0

"""A file without permission to read is one line that names it, in every command that reads one."""

import ctypes
import os
import sys
from pathlib import Path

import pytest
from PIL import Image

from cae_seg.cli import main

COMMANDS = [
    "table --sheet FILE",
    "status --sheet FILE",
    "check-sheet FILE",
    "prepare data --source FILE --root d --manifest m.json",
    "prepare data --verify --manifest FILE",
    "prepare checkpoint FILE --config CONFIG --out r.json",
    "prepare checkpoint CONFIG --config FILE --out r.json",
    "train FILE --work-dir w --device cpu",
    "train CONFIG --data FILE --work-dir w --device cpu",
    "train CONFIG --pretrained FILE --work-dir w --device cpu --iterations 1",
    "evaluate CONFIG FILE --device cpu",
    "predict FILE image.png --device cpu",
    "export FILE --format mmseg",
]


def drop_privileges() -> None:
    """Give up root's right to read any file; its user and its own files stay."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3 of the interface, this process
    if ctypes.CDLL(None, use_errno=True).capset(header, (ctypes.c_uint32 * 6)()) != 0:
        raise OSError(ctypes.get_errno(), "capset failed")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_file_without_permission_is_one_line(command, config, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 8)).save("image.png")
    Path("secret.py").write_text("x = 1")
    Path("secret.py").chmod(0)
    words = {"FILE": "secret.py", "CONFIG": str(config)}
    child = os.fork()
    if child == 0:
        code = 99
        try:
            drop_privileges()
            code = main([words.get(word, word) for word in command.split()])
            sys.stderr.flush()
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    text = capfd.readouterr().err
    assert code == 2, text
    (line,) = (line for line in text.splitlines() if line.startswith("cae-seg: error: "))
    assert "secret.py: " in line

"""Counting GPUs as the profile of this machine does, with a simulated `nvidia-smi`."""

import pytest

from cae_seg.machine import count_gpus


@pytest.fixture
def eight_gpus(tmp_path, monkeypatch):
    lines = "".join(f"echo 'GPU {n}: NVIDIA H100 (UUID: GPU-{n})'\n" for n in range(8))
    command = tmp_path / "nvidia-smi"
    command.write_text(f"#!/bin/sh\n{lines}")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.usefixtures("eight_gpus")
def test_all_gpus_count():
    assert count_gpus() == 8


@pytest.mark.usefixtures("eight_gpus")
@pytest.mark.parametrize(
    ("visible", "count"), [("0,3", 2), ("GPU-a", 1), ("", 0), ("-1", 0), ("7", 1)]
)
def test_visible_devices_narrow_them(monkeypatch, visible, count):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert count_gpus() == count


def test_a_broken_driver_counts_as_none(tmp_path, monkeypatch):
    command = tmp_path / "nvidia-smi"
    command.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed'\nexit 9\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert count_gpus() == 0

"""The MLflow UI as `make ui` opens it, looked at in a real browser."""

import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import requests
from browser import FOLD_ASSISTANT, open_browser, require_browser
from fake_runs import make_run
from waiting import wait_until

from cae_seg.tracking import track

ROWS = [(300, "2e-4", 47.2), (300, "3e-4", 48.1), (800, "2e-4", 49.7), (1600, "1e-4", 50.3)]


@pytest.fixture
def study(tmp_path, store):
    """Tracked runs of four combinations."""
    sheet = ["experiments:"]
    (tmp_path / "recipe.py").write_text("")
    for epochs, rate, miou in ROWS:
        name = f"vit_b_{epochs}_lr{rate}"
        sheet.append(
            f"  - {{name: {name}, backbone: ViT-B, pretraining_epochs: {epochs}, "
            f"learning_rate: {rate}, checkpoint: a.pth, config: recipe.py}}"
        )
        make_run(tmp_path / "results" / name / "seed_0", name, miou=miou, learning_rate=float(rate))
    (tmp_path / "sheet.yaml").write_text("\n".join(sheet))
    track(tmp_path / "results", sheet=tmp_path / "sheet.yaml", uri=store)
    return store


@pytest.fixture
def address(study):
    """The address that `cae-seg ui` prints, while it serves."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "cae_seg.cli", "ui", "--port", str(port)]
    ui = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        line = ui.stdout.readline()
        wait_until("the UI answers", lambda: _answers(port))
        yield re.search(r"http://\S+", line).group()
    finally:
        ui.terminate()
        ui.wait(30)


def _answers(port):
    try:
        return requests.get(f"http://127.0.0.1:{port}/health", timeout=2).ok
    except requests.RequestException:
        return False


@pytest.mark.slow
def test_runs_are_listed_with_their_columns_and_two_are_compared(address):
    require_browser()
    with open_browser() as browser:
        browser.open(address.split("#")[0])
        browser.run(FOLD_ASSISTANT)
        browser.open(address)
        columns = ("backbone", "pretraining_epochs", "learning_rate", "seed", "mIoU")
        names = [f"vit_b_{epochs}_lr{rate}_seed0" for epochs, rate, _ in ROWS]
        browser.wait_for_text(*columns, *names, "50.3", "ViT-B", "1600", "3e-4")
        text = browser.text()
        assert [text.index(name) for name in reversed(names)] == sorted(map(text.index, names))
        for name in names[-2:]:
            row = f"//div[@role='row'][.//text()[contains(., '{name}')]]"
            browser.click(f"{row}//input[@type='checkbox']")
        browser.click("//button[contains(., 'Compare')]")
        browser.wait_for_text("Comparing 2 Runs", *names[-2:], "2e-4", "1e-4", "800", "1600")
        browser.open("about:blank")
        browser.open(f"{address}&compareRunsMode=CHART")
        browser.wait_for_text("Model metrics", "mIoU", "train", "speed")
        text = browser.text()
        sections = [text.index(f"\n{name}\n") for name in ("Model metrics", "train", "speed")]
        assert sections == sorted(sections)
        shown = [text.index(name) for name in reversed(names)]
        assert shown == sorted(shown)


@pytest.mark.slow
def test_the_ui_listens_on_loopback_only(address):
    port = re.search(r":(\d+)/", address).group(1)
    listening = Path("/proc/net/tcp").read_text() + Path("/proc/net/tcp6").read_text()
    hosts = re.findall(rf": (\w+):{int(port):04X} \w+:0000 0A", listening)
    assert hosts == ["0100007F"]  # 127.0.0.1, least byte first

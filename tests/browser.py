"""Headless Chromium through chromedriver's HTTP interface: enough of WebDriver for our tests."""

import base64
import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--force-device-scale-factor=1",
]

# The assistant of MLflow's UI unfolds over the runs at the first visit.
FOLD_ASSISTANT = """
localStorage.setItem("mlflow.assistant.fab.autoOpenedOnFirstLoad_v1", "true");
localStorage.setItem("mlflow.assistant.panelOpen_v1", "false");
"""


class Browser:
    """One window of a headless Chromium."""

    def __init__(self, address: str) -> None:
        self._address = address

    def _call(self, path: str, **values: Any) -> Any:
        answer = requests.post(f"{self._address}/{path}", json=values, timeout=120).json()["value"]
        if isinstance(answer, dict) and "error" in answer:
            raise RuntimeError(answer["message"])
        return answer

    def open(self, url: str) -> None:
        """Load a page."""
        self._call("url", url=url)

    def run(self, script: str, *arguments: Any) -> Any:
        """Run JavaScript in the page and return what it returns."""
        return self._call("execute/sync", script=script, args=list(arguments))

    def text(self) -> str:
        """Return all text that is shown."""
        return self.run("return document.body.innerText")

    def wait_for_text(self, *texts: str, seconds: float = 90) -> None:
        """Return once all `texts` are shown."""
        deadline = time.monotonic() + seconds
        while not all(text in self.text() for text in texts):
            if time.monotonic() > deadline:
                missing = [text for text in texts if text not in self.text()]
                raise AssertionError(f"{missing} never appeared in:\n{self.text()}")
            time.sleep(0.3)

    def click(self, xpath: str, seconds: float = 60) -> None:
        """Click the first element of an XPath, as a person would, once it is there."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                found = self._call("element", using="xpath", value=xpath)
                self._call(f"element/{next(iter(found.values()))}/click")
                return
            except RuntimeError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.3)

    def screenshot(self, path: Path) -> None:
        """Save what the window shows as PNG."""
        answer = requests.get(f"{self._address}/screenshot", timeout=120).json()["value"]
        path.write_bytes(base64.b64decode(answer))


def require_browser() -> None:
    """Skip where there is no Chromium; under CI that is a failure."""
    if shutil.which("chromium") and shutil.which("chromedriver"):
        return
    message = "no chromium and chromedriver (Debian: chromium, chromium-driver)"
    if os.environ.get("CI") == "true":
        pytest.fail(message)
    pytest.skip(message)


@contextlib.contextmanager
def open_browser(width: int = 1500, height: int = 850) -> Iterator[Browser]:
    """Start chromedriver and a Chromium with an empty profile; end both afterwards."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    root = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        driver = subprocess.Popen(["chromedriver", f"--port={port}"], stdout=subprocess.DEVNULL)
        try:
            _wait_until_ready(root)
            flags = [*FLAGS, f"--user-data-dir={profile}", f"--window-size={width},{height}"]
            wanted = {"alwaysMatch": {"goog:chromeOptions": {"args": flags}}}
            answer = requests.post(f"{root}/session", json={"capabilities": wanted}, timeout=120)
            session = answer.json()["value"]["sessionId"]
            yield Browser(f"{root}/session/{session}")
            requests.delete(f"{root}/session/{session}", timeout=60)
        finally:
            driver.terminate()
            driver.wait(30)


def _wait_until_ready(root: str) -> None:
    for _ in range(200):
        with contextlib.suppress(requests.RequestException):
            if requests.get(f"{root}/status", timeout=2).json()["value"]["ready"]:
                return
        time.sleep(0.2)
    raise AssertionError("chromedriver did not start")

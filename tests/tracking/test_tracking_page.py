"""The shared server of docs/tracking.md: its lines, as they stand, on loopback and a free port."""

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import requests
from fake_runs import make_run
from tracked import only_run
from waiting import wait_until

PAGE = Path(__file__).parents[2] / "docs" / "tracking.md"


def lines(port: int) -> list[str]:
    """Return the three lines, without comments."""
    blocks = re.findall(r"```bash\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (block,) = (block for block in blocks if "mlflow server" in block)
    here = block.replace("tracker.example.org", "localhost").replace("0.0.0.0", "127.0.0.1")
    return [line.split("#")[0] for line in here.replace("5000", str(port)).splitlines()]


@pytest.mark.slow
def test_a_run_is_tracked_to_the_shared_server_of_the_page(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    serve, export, track = lines(port)
    make_run(tmp_path / "results" / "row" / "seed_0")
    folders = [Path(sys.executable).parent, os.environ["PATH"]]
    environment = os.environ | {"PATH": os.pathsep.join(map(str, folders))}
    with (tmp_path / "server.log").open("w") as log:
        server = subprocess.Popen(
            ["bash", "-c", f"exec {serve}"],
            env=environment, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    try:
        wait_until("the server answers", lambda: _answers(port), during=server)
        command = f"{export}\n{track}"
        done = subprocess.run(["bash", "-ec", command], env=environment, capture_output=True)
        assert done.returncode == 0, done.stderr.decode()
        assert only_run(f"http://localhost:{port}").info.status == "FINISHED"
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait()


def _answers(port: int) -> bool:
    try:
        return requests.get(f"http://localhost:{port}/health", timeout=2).ok
    except requests.RequestException:
        return False

"""How threads wait for one another on the CPU."""

import os
import subprocess

import pytest


@pytest.mark.parametrize(
    ("given", "expected"), [({}, "1000"), ({"GOMP_SPINCOUNT": "77"}, "77")], ids=["ours", "given"]
)
def test_threads_spin_briefly_unless_the_environment_says_otherwise(undisturbed, given, expected):
    work = undisturbed.work_dir
    command = ["cae-seg", "evaluate", str(work / "config.py"), str(work / "weights.pth")]
    inherited = {
        k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    }
    done = subprocess.run(
        [*command, "--data", str(undisturbed.data), "--device", "cpu"],
        env=inherited | {"OMP_DISPLAY_ENV": "verbose"} | given,
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"GOMP_SPINCOUNT = '{expected}'" in done.stderr

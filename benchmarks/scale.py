"""Case 5: a sweep of a thousand runs, planned and gathered."""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.suite import Options, case, run

COMBINATIONS = 1_000

SHEET = """\
results: {results}
grid:
  - backbone: ViT-B
    pretraining_epochs: [{epochs}]
    learning_rate: [{rates}]
    checkpoint: https://example.org/cae_base_{{epochs}}ep.pth
"""


@case("scale")
def scale(options: Options) -> list[dict[str, Any]]:
    """Measure the plan of 1 000 combinations and the table of 1 000 runs."""
    if options.device != "cpu":
        return []
    with tempfile.TemporaryDirectory() as folder:
        return [_plan(Path(folder)), _table(Path(folder))]


def _plan(folder: Path) -> dict[str, Any]:
    epochs = ", ".join(str(100 * i) for i in range(1, COMBINATIONS // 10 + 1))
    rates = ", ".join(f"{i}e-4" for i in range(1, 11))
    sheet = folder / "sheet.yaml"
    sheet.write_text(SHEET.format(results=folder / "results", epochs=epochs, rates=rates))
    command = ["snakemake", "--profile", "local", "--dry-run", "--quiet", "all", "--nolock"]
    # From a small process: a child starts with the memory of its parent on its account.
    measure = (
        "import json, resource, subprocess, sys, time; begin = time.perf_counter()\n"
        "subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)\n"
        "peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024\n"
        "print(json.dumps({'seconds': time.perf_counter() - begin, 'peak_megabytes': peak}))"
    )
    answer = run([sys.executable, "-c", measure, *command, "--config", f"sheet={sheet}"])
    what = f"dry-run of {COMBINATIONS} combinations"
    return {"what": what, **json.loads(answer), "wanted_seconds": "≤ 10"}


def _table(folder: Path) -> dict[str, Any]:
    """Gather runs as the tests make them up."""
    code = (
        "import sys; from pathlib import Path; sys.path.insert(0, 'tests')\n"
        "from fake_runs import make_sweep; from cae_seg.results.table import write_table\n"
        "import time; folder = Path(sys.argv[1])\n"
        f"rates = [f'{{i}}e-5' for i in range(1, {COMBINATIONS} // 10 + 1)]\n"
        "scores = {(100 * e, rate): [48.0] for e in range(1, 11) for rate in rates}\n"
        "sheet = make_sweep(folder / 'made_up', scores); begin = time.perf_counter()\n"
        "write_table(sheet, out=folder / 'table.md', csv=folder / 'table.csv')\n"
        "print(time.perf_counter() - begin)"
    )
    answer = run([sys.executable, "-c", code, str(folder)])
    return {"what": f"table of {COMBINATIONS} runs", "seconds": float(answer.split()[-1])}

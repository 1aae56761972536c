"""The files that are shown with a run in MLflow."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

from cae_seg.run.paths import RunDir


def gather(run: RunDir, metadata: dict[str, Any], metrics: dict[str, Any] | None, to: Path) -> None:
    """Copy and draw into the folder `to` all that MLflow shows of a run but its visualizations."""
    for path in (run.path / "config.py", run.work.config):
        if path.is_file() and not (to / "config.py").exists():
            shutil.copyfile(path, to / "config.py")
    for path in (*sorted(run.work.path.glob("*.log")), *sorted(run.path.glob("*.log"))):
        (to / "log").mkdir(exist_ok=True)
        shutil.copyfile(path, to / "log" / path.name)
    for path in (run.run_file, run.metrics_file):
        if path.is_file():
            shutil.copyfile(path, to / path.name)
    environment = {
        key: metadata.get(key) for key in ("versions", "device", "code", "accelerations")
    }
    (to / "environment.json").write_text(json.dumps(environment, indent=1))
    if metrics is not None:
        _write_per_class(metrics, to)


def _write_per_class(metrics: dict[str, Any], to: Path) -> None:
    with (to / "per_class.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, ["name", "IoU", "Acc"], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(metrics["per_class"])
    from cae_seg.results.class_figures import draw_classes
    from cae_seg.results.plotting import save

    save(draw_classes(metrics["per_class"]), to / "per_class.png")


def visualizations(run: RunDir) -> dict[str, Path]:
    """Return the visualizations: path below `work/visualizations` → file."""
    folder = run.work.visualizations
    return {str(p.relative_to(folder)): p for p in sorted(folder.rglob("*")) if p.is_file()}

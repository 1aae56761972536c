"""The files that are shown beside a run in MLflow."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

from cae_seg.run.paths import RunFolder

PANELS = "panels"


def gather(run: RunFolder, facts: dict[str, Any], metrics: dict[str, Any] | None, to: Path) -> None:
    """Copy and draw into the folder `to` all that MLflow shows of a run, panels aside."""
    for path in (run.path / "config.py", run.work / "config.py"):
        if path.is_file() and not (to / "config.py").exists():
            shutil.copyfile(path, to / "config.py")
    for path in (*sorted(run.work.glob("*.log")), *sorted(run.path.glob("*.log"))):
        (to / "log").mkdir(exist_ok=True)
        shutil.copyfile(path, to / "log" / path.name)
    for name in ("run.json", "metrics.json"):
        if (run.path / name).is_file():
            shutil.copyfile(run.path / name, to / name)
    environment = {key: facts.get(key) for key in ("versions", "device", "code", "accelerations")}
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


def panels(run: RunFolder) -> dict[str, Path]:
    """Return the qualitative panels: path below `work/panels` → file."""
    folder = run.work / PANELS
    return {str(p.relative_to(folder)): p for p in sorted(folder.rglob("*")) if p.is_file()}

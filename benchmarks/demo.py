"""The demo's data, for cases that measure whole commands."""

from pathlib import Path
from typing import Any

from benchmarks.suite import run

IMAGES = ("training=64", "validation=24")


def draw_data(folder: Path) -> Path:
    """Draw the demo's images into a folder and prepare them; return their manifest."""
    archive, root = folder / "ADEChallengeData2016.zip", folder / "data"
    manifest = root / "manifest.json"
    run(command("prepare demo", archive=archive, checkpoints=folder / "checkpoints"))
    prepare = command("prepare data", source=archive, root=root, manifest=manifest)
    run([*prepare, "--expected", *IMAGES])
    return manifest


def command(name: str, **options: Any) -> list[str]:
    """Return a command of `cae-seg` with its options as words."""
    pairs = [(f"--{key.replace('_', '-')}", str(value)) for key, value in options.items()]
    return ["cae-seg", *name.split(), *(word for pair in pairs for word in pair)]

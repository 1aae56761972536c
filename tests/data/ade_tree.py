"""A handful of pairs in the ADE20K layout, as a folder or zipped."""

import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

FOLDER = "ADEChallengeData2016"
STEMS = {
    "training": ["ADE_train_00000001", "ADE_train_00000002", "ADE_train_00000003"],
    "validation": ["ADE_val_00000001", "ADE_val_00000002"],
}


def make_tree(parent: Path, seed: int = 0) -> Path:
    """Write `ADEChallengeData2016` with five pairs of 24 × 16 pixels below `parent`."""
    rng = np.random.default_rng(seed)
    root = parent / FOLDER
    for split, stems in STEMS.items():
        for kind in ("images", "annotations"):
            (root / kind / split).mkdir(parents=True)
        for stem in stems:
            image = rng.integers(0, 256, (16, 24, 3), dtype=np.uint8)
            Image.fromarray(image).save(root / "images" / split / f"{stem}.jpg")
            save_label(root, split, stem, rng.integers(0, 151, (16, 24), dtype=np.uint8))
    names = "".join(f"{n}\t0.1\t5\t5\t1\tclass {n}, other name\n" for n in range(1, 151))
    (root / "objectInfo150.txt").write_text("Idx\tRatio\tTrain\tVal\tStuff\tName\n" + names)
    (root / "sceneCategories.txt").write_text("ADE_train_00000001 kitchen\n")
    return root


def save_label(root: Path, split: str, stem: str, values: np.ndarray) -> None:
    """Write an annotation of whatever kind `values` has."""
    Image.fromarray(values).save(root / "annotations" / split / f"{stem}.png")


def zip_tree(root: Path, archive: Path) -> Path:
    """Zip a tree as the real archive is zipped: below its own name."""
    with zipfile.ZipFile(archive, "w") as content:
        for path in sorted(root.rglob("*")):
            content.write(path, path.relative_to(root.parent))
    return archive

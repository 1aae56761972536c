"""The record of a verified data set: what it holds, and a fingerprint of the whole."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cae_seg.data.prepare.layout import ADE20K, SPLITS, Layout
from cae_seg.errors import UserError
from cae_seg.files import atomic_write_text, read_json
from cae_seg.redaction import redact

SCHEMA = 1
FOLDER = "ADEChallengeData2016"
AGAIN = "run `cae-seg prepare data` again"


@dataclass(frozen=True)
class Manifest:
    """A verified data set.

    Attributes:
        root: the folder that holds the images and annotations, absolute.
        fingerprint: SHA-256 over all paths, sizes and contents, and of what values mean unless the
            set is ADE20K; the same on every machine.
        classes: the class names in the order of their labels.
        counts: images per split.
        files: per split, stem → (bytes of the image, bytes of the annotation).
        source: the URL (without credentials), archive or folder that it came from.
        layout: where the files are, and what values of annotations mean.
        values: the values that annotations of each split have, right after the verification.
        marks: path below `root` → size, time and SHA-256, right after the verification; kept in
            the index (`index.py`) and empty in a manifest that was read.
    """

    root: Path
    fingerprint: str
    classes: tuple[str, ...]
    counts: dict[str, int]
    files: dict[str, dict[str, tuple[int, int]]]
    source: str
    layout: Layout = ADE20K
    values: Mapping[str, tuple[int, ...]] = field(default_factory=dict, compare=False, repr=False)
    marks: Mapping[str, tuple[int, int, str]] = field(
        default_factory=dict, compare=False, repr=False
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "source", redact(self.source))


def save_manifest(manifest: Manifest, path: Path) -> None:
    """Write a manifest as a whole; a file that says the same already stays untouched."""
    text = _to_json(manifest, Path(path).absolute().parent)
    if not (path.is_file() and path.read_text() == text):
        atomic_write_text(path, text)


def load_manifest(path: Path) -> Manifest:
    """Read a manifest and check that the data is still where it says.

    The first and the last pair of each split are looked at, not all, because this runs in every
    process of every job; `prepare` looks at all.

    Raises:
        UserError: the file is missing or no manifest, or the data was moved or changed.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such manifest; run `cae-seg prepare data` first")
    manifest = _from_json(path, read_json(path))
    for split, files in manifest.files.items():
        for stem in {next(iter(files), None), next(reversed(files), None)} - {None}:
            for file, size in zip(
                manifest.layout.pair(manifest.root, split, stem), files[stem], strict=True
            ):
                if not file.is_file() or file.stat().st_size != size:
                    raise UserError(f"{file}: moved or changed since {path} was written; {AGAIN}")
    return manifest


def _to_json(manifest: Manifest, base: Path) -> str:
    root = manifest.root
    # Relative where that works, so that a project folder can be moved as a whole.
    shown = os.path.relpath(root, base) if root.is_relative_to(base) else str(root)
    value = {
        "schema": SCHEMA,
        "root": shown,
        "source": manifest.source,
        "fingerprint": manifest.fingerprint,
        "classes": list(manifest.classes),
        "splits": {
            split: {"images": manifest.counts[split], "files": manifest.files[split]}
            for split in SPLITS
        },
    }
    if manifest.layout != ADE20K:
        value["layout"] = manifest.layout.as_dict()
    # Compact: the real set's is then under the megabyte up to which Snakemake compares contents.
    return json.dumps(value, separators=(",", ":")) + "\n"


def _from_json(path: Path, value: Any) -> Manifest:
    try:
        if value["schema"] != SCHEMA:
            raise UserError(f"{path}: written by another version of this tool; {AGAIN}")
        splits = {split: value["splits"][split] for split in SPLITS}
        return Manifest(
            root=Path(os.path.normpath(path.absolute().parent / value["root"])),
            fingerprint=str(value["fingerprint"]),
            classes=tuple(value["classes"]),
            counts={split: int(content["images"]) for split, content in splits.items()},
            files={
                split: {stem: tuple(sizes) for stem, sizes in content["files"].items()}
                for split, content in splits.items()
            },
            source=str(value["source"]),
            layout=Layout.from_dict(value["layout"]) if "layout" in value else ADE20K,
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise UserError(f"{path}: not a manifest of this tool; {AGAIN}") from error

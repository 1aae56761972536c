"""What every file of a prepared data set was when it was verified, to notice later changes.

The index is a hidden file next to the manifest, which stays small because Snakemake compares its
content. Size and time of all 44 000 files of ADE20K are compared at the start of every job (0.4 s
of one core); a file whose time differs is hashed, so that a copied data set stays valid.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from cae_seg.data.prepare.layout import SPLITS
from cae_seg.data.prepare.manifest import Manifest
from cae_seg.errors import UserError
from cae_seg.files import atomic_write_text, read_json_object, sha256_file
from cae_seg.progress import progress

REMEDY = "restore the file, or run `cae-seg prepare data` again"


class FileMark(NamedTuple):
    """Size in bytes, time of the last change in ns, and SHA-256 of one file."""

    size: int
    modified_ns: int
    sha256: str


def index_path(manifest: Path) -> Path:
    """Return where the index of a manifest is."""
    return manifest.with_name(f".{manifest.name}.files.json")


def mark_file(path: Path) -> tuple[FileMark, bytes]:
    """Read a file and return its mark, taken so that a change meanwhile is noticed later."""
    before = path.stat()
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    return FileMark(len(content), before.st_mtime_ns, digest), content


def save_index(marks: Mapping[str, FileMark], fingerprint: str, manifest: Path) -> None:
    """Write the marks of all files, by their path below the data set's root."""
    lines = {"fingerprint": fingerprint, "files": marks}
    atomic_write_text(index_path(manifest), json.dumps(lines, separators=(",", ":")) + "\n")


def load_index(manifest: Path, fingerprint: str) -> dict[str, FileMark] | None:
    """Return the marks by path; None if there is no index of this data set."""
    path = index_path(manifest)
    if not path.is_file():
        return None
    try:
        value = read_json_object(path)
        if value["fingerprint"] != fingerprint:
            return None
        marks = {name: FileMark(*mark) for name, mark in value["files"].items()}
        return marks if all(_is_mark(mark) for mark in marks.values()) else None
    except (UserError, KeyError, TypeError, AttributeError):
        return None


def check_unchanged(manifest: Manifest, path: Path, *, thorough: bool = False) -> int:
    """Compare every file of a data set with what it was when the set was prepared.

    Args:
        manifest: the data set.
        path: of the manifest; the index is next to it.
        thorough: hash every file instead of those only whose time differs.

    Returns:
        The number of files.

    Raises:
        UserError: a file is missing or changed; or `thorough` and there is no index.
    """
    marks = load_index(path, manifest.fingerprint)
    if marks is None:
        if thorough:
            raise UserError(f"{index_path(path)}: no index of this data set; prepare it again")
        return _check_sizes(manifest, path)
    files = (
        progress(marks.items(), "verify", "file", total=len(marks)) if thorough else marks.items()
    )
    for name, mark in files:
        _check_file(manifest.root / name, mark, path, thorough)
    return len(marks)


def _check_file(file: Path, mark: FileMark, manifest: Path, thorough: bool) -> None:
    try:
        status = os.stat(file)
        same = status.st_size == mark.size
        if same and (thorough or status.st_mtime_ns != mark.modified_ns):
            same = sha256_file(file) == mark.sha256
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}); {REMEDY}") from error
    if not same:
        raise UserError(f"{file}: changed since {manifest} was written; {REMEDY}")


def _check_sizes(manifest: Manifest, path: Path) -> int:
    """Compare sizes only, of a data set prepared before there was an index."""
    count = 0
    for file, size in _sizes(manifest):
        count += 1
        if not file.is_file() or file.stat().st_size != size:
            raise UserError(f"{file}: missing or changed since {path} was written; {REMEDY}")
    return count


def _sizes(manifest: Manifest) -> Iterator[tuple[Path, int]]:
    for split in SPLITS:
        for stem, sizes in manifest.files[split].items():
            yield from zip(manifest.layout.pair(manifest.root, split, stem), sizes, strict=True)


def _is_mark(mark: FileMark) -> bool:
    return isinstance(mark.size, int) and isinstance(mark.modified_ns, int)

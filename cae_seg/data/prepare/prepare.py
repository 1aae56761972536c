"""From a URL, an archive or a folder to a verified data set with a manifest.

    cae-seg prepare data --source http://…/ADEChallengeData2016.zip --root data/ade20k

The steps leave nothing that looks whole before it is: the download grows in `<archive>.part`, the
archive is unpacked and verified in a hidden folder, which then takes its name in one rename, and
the manifest is written last. Whatever was interrupted, the next start resumes from the last whole
step.
"""

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cae_seg.data.prepare.describe import Description, find_layout
from cae_seg.data.prepare.download import check_sha256, download, is_url, url_name
from cae_seg.data.prepare.extract import STAMP, archive_digest, extract, extracted_digest
from cae_seg.data.prepare.index import check_unchanged, load_index, save_index
from cae_seg.data.prepare.layout import ADE20K, Layout, describe_values, unused_classes
from cae_seg.data.prepare.manifest import (
    FOLDER,
    Manifest,
    load_manifest,
    save_manifest,
)
from cae_seg.data.prepare.verify import verify
from cae_seg.errors import UserError
from cae_seg.files import atomic_write_json, read_json
from cae_seg.locks import FileLock
from cae_seg.redaction import redact

# What was verified, in our own keeping: Snakemake deletes the manifest before it calls us.
RECORD = ".verified.json"
OUR_MANIFEST = ".manifest.json"
PARTIAL = f".{FOLDER}.partial"
REPLACED = f".{FOLDER}.replaced"


def prepare(
    source: str,
    root: Path,
    manifest: Path,
    *,
    sha256: str | None = None,
    expected: dict[str, int] | None = None,
    description: Description | None = None,
) -> Manifest:
    """Make the data set ready and write its manifest.

    What is prepared already and has not changed since (sizes and times of all files) is only
    looked at.

    Args:
        source: URL or path of the zip archive, or an extracted folder, which is used in place.
        root: where the archive, and `ADEChallengeData2016/` extracted from it, are kept.
        manifest: the result.
        sha256: what the archive must hash to.
        expected: how many images each split must hold.
        description: of a data set other than ADE20K, whose source is a folder.

    Raises:
        UserError: the source or its content is not what it should be; a folder cannot be written.
    """
    root, manifest = Path(root), Path(manifest)
    with _plain_errors(root), _exclusive(root):
        layout = ADE20K if description is None else find_layout(Path(source), description)
        identity = _identity(source, sha256)
        if layout != ADE20K:
            identity.append(json.loads(json.dumps(layout.as_dict())))
        known = _known(root, identity, manifest)
        if known is None:
            manifest.unlink(missing_ok=True)
            known = _make_ready(source, root, sha256, expected, layout)
            save_index(known.marks, known.fingerprint, manifest)
            _remember(root, identity, known)
        _check_counts(known, expected)
        save_manifest(known, manifest)
    return known


def describe(prepared: Manifest) -> list[str]:
    """Say what the values of the annotations mean, right after they were looked at."""
    lines = []
    for split, found in prepared.values.items():
        if prepared.layout == ADE20K:
            continue
        lines.append(f"{split}: annotations have {describe_values(prepared.layout, found)}")
        if unused := unused_classes(prepared.layout, found):
            names = ", ".join([*unused[:5], *(["…"] if len(unused) > 5 else [])])
            lines.append(f"{split}: note: no annotation has {names}")
    return lines


def verify_prepared(manifest: Path) -> int:
    """Hash every file of a prepared data set again and return their number.

    Raises:
        UserError: a file is missing or changed since the preparation.
    """
    return check_unchanged(load_manifest(manifest), manifest, thorough=True)


def _make_ready(
    source: str,
    root: Path,
    sha256: str | None,
    expected: dict[str, int] | None,
    layout: Layout,
) -> Manifest:
    if layout != ADE20K:
        return verify(Path(source).absolute(), source, layout=layout, expected=expected)
    if not is_url(source) and Path(source).is_dir():
        folder = _data_folder(Path(source), source)
        return verify(folder.absolute(), source, expected=expected)
    if is_url(source):
        archive = download(source, root / url_name(source), sha256=sha256)
    else:
        archive = Path(source)
        if archive.exists():
            check_sha256(archive, sha256)
    return _unpack(archive, source, root, expected)


def _unpack(archive: Path, source: str, root: Path, expected: dict[str, int] | None) -> Manifest:
    target, partial = root / FOLDER, root / PARTIAL
    here = extracted_digest(target)
    if target.exists() and here is None:
        raise UserError(
            f"{target}: is in the way and not of our making; move it, or give it as the source"
        )
    if here == archive_digest(archive):
        with contextlib.suppress(UserError):  # damaged since: unpack it again
            return verify(target.absolute(), source, expected=expected)
    try:
        extract(archive, partial)
        folder = _data_folder(partial, source)
        found = verify(folder, source, expected=expected)
    except UserError:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    _adopt(partial, folder, target)
    return dataclasses.replace(found, root=target.absolute())


def _adopt(partial: Path, folder: Path, target: Path) -> None:
    """Let the verified `folder` inside `partial` take the place of `target`."""
    replaced = target.with_name(REPLACED)
    shutil.rmtree(replaced, ignore_errors=True)
    if folder != partial:  # the stamp moves with the data
        os.replace(partial / STAMP, folder / STAMP)
    if target.exists():
        os.replace(target, replaced)
    os.replace(folder, target)
    shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(replaced, ignore_errors=True)


def _data_folder(folder: Path, source: str) -> Path:
    for candidate in (folder, folder / FOLDER):
        if (candidate / "images").is_dir() and (candidate / "annotations").is_dir():
            return candidate
    raise UserError(
        f"{source}: holds no {FOLDER}/images and {FOLDER}/annotations; "
        "give the scene parsing archive or the folder that holds these two"
    )


def _identity(source: str, sha256: str | None) -> list[Any]:
    """Return what tells this source from another, or from itself after a change."""
    if is_url(source):
        return [redact(source), sha256]
    try:
        stat = os.stat(source)
    except FileNotFoundError as error:
        raise UserError(f"{source}: no such archive or folder; give a URL, a zip or one") from error
    path = os.path.abspath(source)
    if os.path.isdir(source):
        return [path]
    if not os.path.isfile(source):
        raise UserError(f"{source}: is no regular file; give a URL, a zip or a folder")
    return [path, sha256, stat.st_size, stat.st_mtime_ns]


def _known(root: Path, identity: list[Any], manifest: Path) -> Manifest | None:
    """Return what was verified before, if it came from this source and no file changed since."""
    try:
        record = read_json(root / RECORD)
        if record["identity"] != identity:
            return None
        known = load_manifest(root / OUR_MANIFEST)
        indexed = load_index(manifest, known.fingerprint) is not None
        return known if indexed and record["files"] == _listing(known) else None
    except (UserError, KeyError, TypeError, FileNotFoundError):
        return None


def _remember(root: Path, identity: list[Any], verified: Manifest) -> None:
    (root / RECORD).unlink(missing_ok=True)
    save_manifest(verified, root / OUR_MANIFEST)
    atomic_write_json(root / RECORD, {"identity": identity, "files": _listing(verified)})


def _listing(verified: Manifest) -> str:
    """Return a hash over name, size and time of every file in the data set's folders."""
    listing = hashlib.sha256()
    for folder in verified.layout.folders:
        for name in sorted(_files_below(verified.root / folder)):
            _add_mark(listing, name, (verified.root / folder / name).stat())
    for name in verified.layout.own_files:
        _add_mark(listing, name, (verified.root / name).stat())
    return listing.hexdigest()


def _files_below(folder: Path) -> Iterator[str]:
    for parent, _, files in os.walk(folder):
        yield from (os.path.relpath(os.path.join(parent, name), folder) for name in files)


def _add_mark(listing: Any, name: str, stat: os.stat_result) -> None:
    listing.update(f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())


def _check_counts(verified: Manifest, expected: dict[str, int] | None) -> None:
    for split, wanted in (expected or {}).items():
        if verified.counts.get(split) != wanted:
            raise UserError(
                f"{verified.source}: {split} has {verified.counts.get(split, 0)} image pairs "
                f"instead of {wanted}; get the archive again or correct the number"
            )


@contextlib.contextmanager
def _exclusive(root: Path) -> Iterator[None]:
    """Hold the folder against a second `prepare`; a crash lets go of it."""
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / ".prepare.lock").held(on_wait=_report_owner):
        yield


def _report_owner(owner: str) -> None:
    print(f"waiting for {owner}, which prepares the same data", file=sys.stderr, flush=True)


@contextlib.contextmanager
def _plain_errors(root: Path) -> Iterator[None]:
    """Turn what the file system refuses into one line."""
    reasons = {
        errno.ENOSPC: "the disk is full; make room or name another folder",
        errno.EDQUOT: "the disk quota is used up; make room or name another folder",
    }
    try:
        yield
    except OSError as error:
        reason = reasons.get(error.errno, f"cannot be read or written ({error.strerror})")
        raise UserError(f"{error.filename or root}: {reason}") from error

"""Safely extract an untrusted zip archive."""

import hashlib
import shutil
import stat
import struct
import zipfile
from pathlib import Path, PurePosixPath

from cae_seg.errors import UserError
from cae_seg.progress import progress

STAMP = ".archive"


def archive_digest(archive: Path) -> str:
    """Return a hash over the names, sizes and checksums of what a zip archive holds.

    Reads the archive's table of contents only, so it is quick.

    Raises:
        UserError: the archive is missing, truncated or not a zip archive.
    """
    digest = hashlib.sha256()
    with _open(archive) as content:
        for entry in content.infolist():
            digest.update(f"{entry.filename}\0{entry.file_size}\0{entry.CRC}\n".encode())
    return digest.hexdigest()


def extract(archive: Path, target: Path) -> None:
    """Unpack `archive` into the new folder `target`, which is stamped once it is whole.

    Every entry is looked at before the first is written. A stamped `target` of the same archive is
    left as it is; any other one is replaced.

    Raises:
        UserError: the archive is missing, truncated, damaged or not a zip; it holds links, devices
            or paths that leave the target; the disk is full.
    """
    digest = archive_digest(archive)
    if extracted_digest(target) == digest:
        return
    with _open(archive) as content:
        entries = content.infolist()
        for entry in entries:
            _check(archive, entry)
        _check_space(archive, entries, target.parent)
        if target.exists():
            shutil.rmtree(target)
        target.mkdir(parents=True)
        for entry in progress(entries, f"extract {archive.name}", "file"):
            _write(archive, content, entry, target)
    (target / STAMP).write_text(digest)


def extracted_digest(folder: Path) -> str | None:
    """Return the digest of the archive that `folder` is the whole content of, or None."""
    stamp = folder / STAMP
    return stamp.read_text() if stamp.is_file() else None


def _open(archive: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(archive)
    except FileNotFoundError as error:
        raise UserError(f"{archive}: no such archive; give a URL, a zip or a folder") from error
    except zipfile.BadZipFile as error:
        with open(archive, "rb") as stream:
            begun_well = stream.read(4) == b"PK\x03\x04"
        what = "is truncated" if begun_well else "is not a zip archive"
        raise UserError(f"{archive}: {what}; delete it and get it again") from error
    except (ValueError, NotImplementedError, struct.error) as error:
        # Names that are not UTF-8, versions of the format that do not exist, torn headers.
        raise UserError(f"{archive}: is damaged ({error}); delete it and get it again") from error


def _check(archive: Path, entry: zipfile.ZipInfo) -> None:
    name = entry.filename
    path = PurePosixPath(name.replace("\\", "/"))
    # The original name, because `zipfile` cuts a name at a NUL.
    if not path.parts or not entry.orig_filename.isprintable():
        raise UserError(f"{archive}: its entry {name!r} is no file name; do not use this archive")
    if path.is_absolute() or ".." in path.parts or ":" in name.split("/")[0]:
        raise UserError(
            f"{archive}: its entry {name!r} would be written outside the data folder; "
            "do not use this archive"
        )
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        what = "a link" if kind == stat.S_IFLNK else "a device"
        raise UserError(f"{archive}: its entry {name!r} is {what}; do not use this archive")
    if entry.flag_bits & 1:
        raise UserError(
            f"{archive}: its entry {name!r} is encrypted; unpack it and give the folder"
        )


def _check_space(archive: Path, entries: list[zipfile.ZipInfo], folder: Path) -> None:
    needed, free = sum(entry.file_size for entry in entries), shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"{folder}: {archive.name} needs {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are "
            "free; make room or name another folder"
        )


def _write(archive: Path, content: zipfile.ZipFile, entry: zipfile.ZipInfo, target: Path) -> None:
    path = target / PurePosixPath(entry.filename.replace("\\", "/"))
    if entry.is_dir():
        path.mkdir(parents=True, exist_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with content.open(entry) as source, open(path, "xb") as sink:
            shutil.copyfileobj(source, sink, 1 << 20)
    except FileExistsError as error:
        raise UserError(
            f"{archive}: it holds {entry.filename!r} twice; do not use this archive"
        ) from error
    except Exception as error:  # each kind of compression has its own
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of the disk
        raise UserError(
            f"{archive}: its entry {entry.filename!r} is damaged ({error}); "
            "delete the archive and get it again"
        ) from error

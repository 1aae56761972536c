"""Small files that are either whole or absent, and their checksums."""

import contextlib
import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from cae_seg.errors import UserError

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
LARGEST_TEXT = 256 << 20  # bytes; ADE20K's manifest has one million, a long run's record ten


@contextlib.contextmanager
def atomic_writer(path: Path) -> Iterator[BinaryIO]:
    """Open a file that takes the place of `path` only once it is wholly on the disk.

    The content goes to a temporary file in the same folder, is fsynced and renamed; on any error
    the temporary file is removed and `path` stays as it was.

    Raises:
        UserError: the folder cannot be created or written, or the disk is full.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise UserError(f"{path.parent}: cannot be written ({error.strerror})") from error
    try:
        with full_disk_is_one_line(path), os.fdopen(descriptor, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, path)
        fsync_folder(path.parent)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise


@contextlib.contextmanager
def full_disk_is_one_line(path: Path | str = "the disk") -> Iterator[None]:
    """Report a full disk or a used-up quota as a mistake that the user can fix.

    Args:
        path: what is being written, where the error itself does not name it.

    Raises:
        UserError: there was no room.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:  # torch.save raises another one when it cleans up
        full = _full_disk(error)
        if full is None:
            raise
        where = full.filename or path
        raise UserError(f"{where}: cannot be written ({full.strerror}); make room") from error


def _full_disk(error: BaseException | None) -> OSError | None:
    """Return the error of a full disk that an exception is, or was raised after."""
    while error is not None and getattr(error, "errno", None) not in NO_ROOM:
        error = error.__context__
    return error


def fsync_folder(folder: Path) -> None:
    """Make a rename inside `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def atomic_write_text(path: Path, text: str) -> None:
    """Write `text` to `path` as a whole or not at all."""
    with atomic_writer(path) as stream:
        stream.write(text.encode())


def atomic_write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON to `path` as a whole or not at all."""
    atomic_write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def check_writable(folder: Path) -> None:
    """Check that files can be made in `folder`, or that it can be made, without making it.

    Raises:
        UserError: it cannot.
    """
    try:
        present = folder.absolute()
        while not present.exists():
            present = present.parent
        is_folder, allowed = present.is_dir(), os.access(present, os.W_OK | os.X_OK)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: {_reason(error)}; choose another folder") from error
    if not is_folder:
        raise UserError(f"{present}: is a file where a folder is needed; choose another folder")
    if not allowed:
        raise UserError(
            f"{folder}: cannot be written; choose another folder or fix its permissions"
        )


def check_output_file(path: Path) -> None:
    """Check that `path` can be written as a regular file, without writing it.

    Raises:
        UserError: it is a folder, a device or a pipe, or its folder cannot be written.
    """
    check_writable(path.parent)
    try:
        in_the_way = path.exists() and not path.is_file()
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: {_reason(error)}; choose another name") from error
    if in_the_way:
        kind = "a folder" if path.is_dir() else "no regular file"
        raise UserError(f"{path}: is {kind}; choose another file name")


def read_text(path: Path, *, most: int = LARGEST_TEXT, errors: str = "strict") -> str:
    """Read a regular text file in UTF-8.

    Args:
        path: the file.
        most: bytes that it may have.
        errors: what becomes of bytes that are not UTF-8, as of `open`.

    Raises:
        UserError: it is missing, no regular file, larger, not readable or not UTF-8.
    """
    path = Path(path)
    try:
        if not path.is_file():
            kind = "is not a regular file" if path.exists() else "no such file"
            raise UserError(f"{path}: {kind}; check the path")
        if (size := path.stat().st_size) > most:
            raise UserError(f"{path}: has {size} bytes, more than {most}; check the path")
        return path.read_text(encoding="utf-8", errors=errors)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 text (byte {error.start}); convert it") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({_reason(error)}); check the file") from error


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        UserError: as of `read_text`, or it is no JSON.
    """
    text = read_text(path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a JSON file ({_reason(error)}); restore it") from error


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a JSON file whose content is an object.

    Raises:
        UserError: as of `read_json`, or it is an array, a text or a number.
    """
    value = read_json(path)
    if not isinstance(value, dict):
        raise UserError(f"{path}: is no JSON object; restore the file")
    return value


def read_note(path: Path) -> dict[str, Any]:
    """Read a small JSON object that only informs; one that is lost or damaged is empty."""
    with contextlib.suppress(UserError):
        return read_json_object(path)
    return {}


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes as hex digits."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__

"""Fetch a file by HTTP so that an interruption costs only what was not yet received."""

import contextlib
import os
import re
import time
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

import requests
from urllib3.exceptions import LocationParseError

from cae_seg.errors import UserError
from cae_seg.files import sha256_file
from cae_seg.progress import progress

CHUNK = 1 << 20
TIMEOUT_SECONDS = 60
TRIES = 5
PAUSE_SECONDS = 2.0


class _Interrupted(Exception):
    """The connection broke; what came so far is kept."""


def is_url(source: str) -> bool:
    """Tell whether `source` names something to download rather than a path."""
    return "://" in source


def url_name(url: str) -> str:
    """Return the file name that a URL ends with."""
    name = Path(_split(url).path).name
    return name if name not in ("", ".", "..") else "download"


def download(url: str, target: Path, *, sha256: str | None = None) -> Path:
    """Fetch `url` to `target`; resume where an earlier try stopped.

    What has arrived is kept in `<target>.part` until it is whole and, where `sha256` is given,
    until it hashes to that. A file that changed on the server meanwhile is fetched again.

    `${NAME}` in the address refers to an environment variable, so that no secret has to be
    written into a sheet; user names and passwords are taken from `~/.netrc`.

    Returns:
        `target`.

    Raises:
        UserError: the address does not answer, refuses, or sends something else.
    """
    target = Path(target)
    address = _expand(url)
    if target.exists():
        check_sha256(target, sha256)
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    for left in reversed(range(TRIES)):
        try:
            _fetch(address, part)
            break
        except (_Interrupted, requests.ConnectionError, requests.Timeout) as error:
            if not left:
                raise UserError(
                    f"{url}: cannot be downloaded ({_reason(error)}); what has arrived is kept, "
                    "run the same command again to resume"
                ) from error
            time.sleep(PAUSE_SECONDS)
        except (requests.RequestException, LocationParseError) as error:
            raise UserError(f"{url}: cannot be downloaded ({_reason(error)})") from error
    try:
        check_sha256(part, sha256)
    except UserError:
        _forget(part)
        raise
    os.replace(part, target)
    _forget(part)
    return target


def _expand(url: str) -> str:
    """Return the address with its `${NAME}` replaced from the environment."""
    names = re.findall(r"\$\{(\w+)\}", url)
    if missing := [name for name in names if name not in os.environ]:
        raise UserError(f"{url}: the environment variable {missing[0]} is not set; export it")
    address = re.sub(r"\$\{(\w+)\}", lambda name: os.environ[name[1]], url)
    if _split(address).scheme not in ("http", "https"):
        raise UserError(f"{url}: only http and https addresses can be downloaded; give a path")
    return address


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        if parts.port == 0 or ("://" in url and not parts.hostname):
            raise ValueError("no host, or port 0")
    except ValueError as error:
        raise UserError(f"{url}: is not a valid address ({error}); correct it") from error
    return parts


def check_sha256(path: Path, expected: str | None) -> None:
    """Compare a file with the checksum it must have, where one is given.

    Raises:
        UserError: it has another one.
    """
    if expected is None:
        return
    actual = sha256_file(path)
    if actual != expected.lower():
        raise UserError(
            f"{path}: its sha256 is {actual}, not {expected}; get the file again or correct the sum"
        )


def _fetch(url: str, part: Path) -> None:
    """Append to `part` until it holds the whole of `url`."""
    validator = part.with_name(part.name + ".etag")
    have = part.stat().st_size if part.exists() and validator.exists() else 0
    # `If-Range` has the server send the whole file when it is no longer the one begun.
    headers = {"Accept-Encoding": "identity"}
    if have:
        headers |= {"Range": f"bytes={have}-", "If-Range": validator.read_text()}
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT_SECONDS) as answer:
        if answer.status_code == 416:  # nothing beyond what is here: another file, or all of it
            if _total(answer) == have:
                return
            _forget(part)
            raise _Interrupted("the file on the server has changed")
        if not answer.ok:
            raise UserError(f"{url}: the server answers {answer.status_code} {answer.reason}")
        resumed = answer.status_code == 206
        _remember(validator, answer)
        _receive(answer, part, have if resumed else 0)


def _receive(answer: requests.Response, part: Path, have: int) -> None:
    length = answer.headers.get("Content-Length")
    total = have + int(length) if length else None
    done = have
    with (
        open(part, "ab" if have else "wb") as stream,
        progress((), f"download {part.stem}", "B", total=total, initial=have) as bar,
    ):
        try:
            for chunk in answer.iter_content(CHUNK):
                stream.write(chunk)
                done += len(chunk)
                bar.update(len(chunk))
        except requests.RequestException as error:
            raise _Interrupted(_reason(error)) from error
        stream.flush()
        os.fsync(stream.fileno())
    if total is not None and done != total:
        raise _Interrupted(f"{done} of {total} bytes came")


def _remember(validator: Path, answer: requests.Response) -> None:
    tag = answer.headers.get("ETag") or answer.headers.get("Last-Modified")
    if tag and not tag.startswith("W/"):
        validator.write_text(tag)
    else:  # without a strong mark two versions could be mixed: start over next time
        validator.unlink(missing_ok=True)


def _total(answer: requests.Response) -> int | None:
    _, _, total = answer.headers.get("Content-Range", "").partition("/")
    return int(total) if total.isdigit() else None


def _forget(part: Path) -> None:
    for path in (part, part.with_name(part.name + ".etag")):
        with contextlib.suppress(FileNotFoundError):
            path.unlink()


def _reason(error: Exception) -> str:
    cause = error.args[0] if error.args else error
    reason = getattr(cause, "reason", cause)
    return str(reason).split(">: ")[-1]

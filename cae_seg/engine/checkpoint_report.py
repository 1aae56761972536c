"""Look into a pretrained checkpoint before any GPU is asked for."""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

from cae_seg.data.prepare.download import download, is_url, url_name
from cae_seg.engine.validate import check_checkpoint
from cae_seg.errors import UserError
from cae_seg.files import atomic_write_json, read_json_object, sha256_file
from cae_seg.locks import FileLock
from cae_seg.redaction import redact

CHECKPOINTS = Path("checkpoints")
_DOWNLOAD_WAIT = 24 * 3600.0


def inspect_checkpoint(
    source: str,
    config: Path,
    out: Path,
    *,
    sha256: str | None = None,
    cfg_options: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Fetch a checkpoint if need be, and say what the config's backbone takes from it.

    Args:
        source: path, or URL, which is downloaded once into `checkpoints/`.
        config: mmengine config of the model.
        out: report, as JSON; `TrainJob.pretrained` takes it for the checkpoint itself.
        sha256: what the file must hash to.
        cfg_options: dotted config keys and their new values.

    Returns:
        The report: path, sha256, layout, numbers of tensors loaded, resized, initialised, left,
        dropped, `warnings`, and a `summary` for people.

    Raises:
        UserError: missing, damaged, of another architecture, or another file than expected.
    """
    from cae_seg.engine.config import load_config

    settings = load_config(config, cfg_options or {})
    path = _fetch(source, sha256) if is_url(source) else Path(source)
    check_checkpoint(path)
    found = sha256_file(path)
    if sha256 is not None and found != sha256.lower():
        raise UserError(f"{path}: hashes to {found}, expected {sha256}; download it again")
    report = _try_on(settings, path)
    result = {
        "schema": 1,
        "source": redact(source),
        "path": str(path),
        "sha256": found,
        **_stamp(path),
        **report.as_dict(),
        "summary": report.summary(),
    }
    atomic_write_json(out, result)
    return result


def known_sha256(report: Path) -> tuple[Path, str]:
    """Return path and SHA-256 of an inspected checkpoint, without hashing it again.

    Raises:
        UserError: it is gone or was changed since.
    """
    known = read_json_object(report)
    if not (isinstance(known.get("path"), str) and isinstance(known.get("sha256"), str)):
        raise UserError(
            f"{report}: is no report of a checkpoint; run `cae-seg prepare checkpoint` again"
        )
    path = Path(known["path"])
    check_checkpoint(path)
    if _stamp(path) == {key: known.get(key) for key in _stamp(path)}:
        return path, known["sha256"]
    if (found := sha256_file(path)) != known["sha256"]:
        raise UserError(
            f"{path}: changed since {report} was written; run `cae-seg prepare checkpoint` again"
        )
    return path, found


def _fetch(url: str, sha256: str | None) -> Path:
    # Other addresses may end in the same name.
    tag = hashlib.sha256(url.encode()).hexdigest()[:8]
    path = CHECKPOINTS / f"{tag}_{url_name(url)}"
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    if not lock.acquire(_DOWNLOAD_WAIT):
        raise UserError(f"{path}: {lock.owner()} has been downloading it for a day; stop it")
    try:
        return download(url, path, sha256=sha256)
    finally:
        lock.release()


def _try_on(settings: Any, path: Path) -> Any:
    """Fill a backbone that is not trained."""
    from cae_seg.engine.build import build_backbone
    from cae_seg.models.pretrained.compatibility import normalisation_warnings
    from cae_seg.models.pretrained.load import load_pretrained

    report = load_pretrained(build_backbone(settings), path)
    preprocessor = (
        settings.get("data_preprocessor") or settings.model.get("data_preprocessor") or {}
    )
    normalisation = normalisation_warnings(report.mean, preprocessor.get("mean"))
    return dataclasses.replace(report, warnings=report.warnings + normalisation)


def _stamp(path: Path) -> dict[str, int]:
    status = path.stat()
    return {"bytes": status.st_size, "modified_ns": status.st_mtime_ns}

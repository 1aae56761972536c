"""Check configs, options and knobs of a sheet's rows before anything runs.

Who reads an option is known only once torch and mmsegmentation are loaded, which takes seconds.
`check_sheet` therefore does it in another process, for rows that change their recipe alone, and
remembers sheets that passed: Snakemake reads the sheet again in each of its jobs.
"""

import contextlib
import functools
import hashlib
import json
import subprocess
import sys
from pathlib import Path

from cae_seg.arguments import config_options
from cae_seg.config_files import ZOO_PREFIX, files_of_config, find_config
from cae_seg.engine.job import Knobs
from cae_seg.engine.validate import check_conflicts
from cae_seg.errors import UserError
from cae_seg.files import atomic_write_text
from cae_seg.run.provenance import code_fingerprint
from cae_seg.sheet.reading import Sheet
from cae_seg.sheet.schema import Experiment


def check_sheet(sheet: Sheet, cache: Path) -> None:
    """Check the rows of a sheet that change their recipe, without importing torch here.

    Args:
        sheet: as `load_sheet` returns it.
        cache: folder that remembers the sheets that passed.

    Raises:
        UserError: an option has no effect or a knob does not fit; the message names the row.
    """
    rows = [row for row in sheet.experiments if _changes_recipe(row)]
    if not rows or (passed := cache / _key(rows)).exists():
        return
    command = [sys.executable, "-m", "cae_seg.cli", "check-sheet", str(sheet.path)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
        message = lines[-1].removeprefix("cae-seg: error: ")
        known = message.startswith(str(sheet.path))
        raise UserError(message if known else f"{sheet.path}: cannot be checked ({message})")
    with contextlib.suppress(UserError):  # a folder that cannot be written is checked again
        atomic_write_text(passed, "")


def check_rows(sheet: Sheet) -> int:
    """Check the rows of a sheet that change their recipe; return their number.

    Raises:
        UserError: as `check_sheet`.
    """
    rows = [row for row in sheet.experiments if _changes_recipe(row)]
    for row in rows:
        try:
            _check_row(row)
        except UserError as error:
            raise UserError(f"{sheet.path}: experiment {row.name!r}: options: {error}") from error
    return len(rows)


def _check_row(row: Experiment) -> None:
    from cae_seg.engine.config import apply_options

    given = {"learning_rate": row.learning_rate, "pretrained": row.checkpoint, "data": "manifest"}
    given |= {"precision": row.precision, "batch_size": row.batch_size}
    check_conflicts(row.options, given)
    options = config_options([f"{key}={value}" for key, value in row.options.items()])
    knobs = Knobs(row.iterations, row.batch_size, row.crop_size)
    apply_options(_read(row.config), options, knobs)


@functools.cache
def _read(config: str) -> object:
    from cae_seg.engine.config import read_config

    return read_config(find_config(config))


def _changes_recipe(row: Experiment) -> bool:
    return bool(row.recipe_changes) or row.config.startswith(ZOO_PREFIX)


def _key(rows: list[Experiment]) -> str:
    """Hash what the result of a check depends on."""
    configs = {row.config for row in rows}
    files = {file for config in configs for file in files_of_config(find_config(config))}
    digest = hashlib.sha256(code_fingerprint().encode())
    for row in rows:
        digest.update(json.dumps(row.model_dump(mode="json"), sort_keys=True).encode())
    for file in sorted(files):
        digest.update(f"{file}\0".encode() + file.read_bytes())
    return digest.hexdigest()[:32]

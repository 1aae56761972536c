"""Check configs, options and knobs of a sheet's rows before anything runs.

Who reads an option is known only once torch and mmsegmentation are loaded, which takes seconds.
`check_sheet` therefore does it in another process, for the rows alone that change their recipe or
name a config of the user's own; what shipped configs build is known by their names.
"""

import functools
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cae_seg.arguments import config_options
from cae_seg.config_files import SHIPPED, ZOO_PREFIX, find_config
from cae_seg.engine.backbone_label import contradicts
from cae_seg.engine.config_text import config_text
from cae_seg.engine.job import Knobs
from cae_seg.engine.validate import check_conflicts
from cae_seg.errors import UserError
from cae_seg.sheet.reading import Sheet
from cae_seg.sheet.schema import BUILT_BY_CONFIG, Experiment


def check_sheet(sheet: Sheet) -> None:
    """Check a sheet's rows as `check_rows` does, without importing torch here.

    Args:
        sheet: as `load_sheet` returns it.

    Raises:
        UserError: an option has no effect, a knob does not fit, or a config builds another backbone
            than the row's; the message names the row.
    """
    if not _rows_to_check(sheet):
        return
    command = [sys.executable, "-m", "cae_seg.cli", "check-sheet", str(sheet.path)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
        message = lines[-1].removeprefix("cae-seg: error: ")
        known = message.startswith(str(sheet.path))
        raise UserError(message if known else f"{sheet.path}: cannot be checked ({message})")


def check_rows(sheet: Sheet) -> int:
    """Check the rows that change their recipe or have a config of their own; return their number.

    Raises:
        UserError: as `check_sheet`.
    """
    rows = _rows_to_check(sheet)
    for row in rows:
        changed = _changes_recipe(row)
        try:
            backbone = _check_row(row) if changed else _backbone_of(row.config)
        except UserError as error:
            key = "options" if changed else "config"
            raise UserError(f"{sheet.path}: experiment {row.name!r}: {key}: {error}") from error
        if (built := contradicts(row.backbone, backbone)) is not None:
            raise UserError(
                f"{sheet.path}: experiment {row.name!r}: backbone: {row.backbone!r} contradicts "
                f"the config, which builds {built}"
            )
    return len(rows)


def _check_row(row: Experiment) -> Mapping[str, Any]:
    """Check a row's options and knobs; return the config of its backbone."""
    from cae_seg.engine.compilation import check_compile
    from cae_seg.engine.config import apply_options

    given = {"learning_rate": row.learning_rate, "data": "manifest"}
    given |= {"pretrained": row.checkpoint if row.has_checkpoint else None}
    given |= {"precision": row.precision, "batch_size": row.batch_size}
    changes = row.model_options | row.options
    check_conflicts(changes, given)
    options = config_options([f"{key}={value}" for key, value in changes.items()])
    knobs = Knobs(row.iterations, row.batch_size, row.crop_size)
    config = apply_options(_read(row.config), options, knobs)
    check_compile(config, deterministic=row.deterministic)
    if any(key.startswith("model.") for key in changes):
        _build_without_memory(config_text(config))
    return config.model.get("backbone") or {}


@functools.cache
def _build_without_memory(text: str) -> None:
    """Build a model on the meta device: its classes refuse what the checks of options miss.

    Raises:
        UserError: it cannot be built.
    """
    from mmengine.config import Config

    from cae_seg.engine.build import build_part, without_start_values
    from cae_seg.engine.meta import on_meta_device

    config = Config.fromstring(text, ".py")
    with on_meta_device():
        build_part(config, without_start_values(config.model))


@functools.cache
def _read(config: str) -> Any:
    from cae_seg.engine.config import read_config

    return read_config(find_config(config))


@functools.cache
def _backbone_of(config: str) -> Mapping[str, Any]:
    """Return the backbone that a config names, without importing or building anything of it."""
    model = _read(config).model
    if name := model.get("timm"):
        return {"type": "TimmModel", "model_name": name}
    return model.get("backbone") or {}


def _rows_to_check(sheet: Sheet) -> list[Experiment]:
    return [row for row in sheet.experiments if _changes_recipe(row) or _is_own(row.config)]


def _is_own(config: str) -> bool:
    """Return whether a config is the user's; the labels of shipped ones are checked by name."""
    path = Path(config)
    known = any(re.search(pattern, path.stem) for pattern in BUILT_BY_CONFIG)
    return not (known and SHIPPED in path.parents)


def _changes_recipe(row: Experiment) -> bool:
    changes = row.recipe_changes or row.model_options
    return bool(changes) or row.config.startswith(ZOO_PREFIX)

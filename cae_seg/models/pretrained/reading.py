"""Read a checkpoint file as data: tensors, containers, numbers and text; no code in it is run."""

import argparse
import codecs
import pathlib
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cae_seg.errors import UserError
from cae_seg.models.pretrained.values import check_kinds


class _Ignored:
    """Stands for an object that is of no use here; takes any arguments and state, keeps none."""

    def __init__(self, *arguments: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _ignored(*arguments: Any) -> None:
    """Stand for a function that is not called."""


# Types without behaviour that training scripts store with the weights: arguments and numbers.
INERT_TYPES = [
    argparse.Namespace,
    pathlib.PosixPath,
    pathlib.PurePosixPath,
    codecs.encode,
    np.dtype,
    np._core.multiarray.scalar,
    (np._core.multiarray.scalar, "numpy.core.multiarray.scalar"),
    *(type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i4", "i8", "u1", "?")),
    # What mmengine's own tools keep next to the weights, histories of losses with methods, is read
    # past: the names refer to inert stand-ins.
    (_Ignored, "mmengine.logging.history_buffer.HistoryBuffer"),
    *((_ignored, f"{module}getattr") for module in ("", "builtins.", "__builtin__.")),
    np.ndarray,
    np._core.multiarray._reconstruct,
    (np._core.multiarray._reconstruct, "numpy.core.multiarray._reconstruct"),
]


def load_checkpoint_file(path: str | Path) -> dict:
    """Return the contents of a `.safetensors` file or of a torch checkpoint, on the CPU.

    No code from the file is run: torch files are read with `weights_only=True`, which knows
    tensors, containers and numbers, and the inert types listed here.

    Raises:
        UserError: missing, unreadable, truncated, damaged, not a checkpoint, in need of pickled
            code, or with tensors of a kind that no network has.
    """
    path = Path(path)
    if not path.is_file():
        kind = "is a folder, not a checkpoint file" if path.is_dir() else "no such checkpoint"
        raise UserError(f"{path}: {kind}; name the downloaded file")
    try:
        contents = _read(path)
    except PermissionError as error:
        raise UserError(f"{path}: may not be read; check the file's rights") from error
    except _Damaged as error:
        raise UserError(f"{path}: {error}") from error
    except Exception as error:  # readers raise a dozen kinds on damaged bytes
        raise UserError(f"{path}: {_reading_problem(error, path)}") from error
    if not isinstance(contents, Mapping):
        raise UserError(
            f"{path}: holds a {type(contents).__name__}, not a checkpoint's dictionary; "
            "see docs/checkpoints.md for the layouts"
        )
    check_kinds(contents, path)
    return dict(contents)


def _read(path: Path) -> Any:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    if damaged := _damaged_part(path):
        raise _Damaged(f"is damaged (checksum of {damaged}); download it again")
    with torch.serialization.safe_globals(INERT_TYPES), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # on the pickle protocol: an error follows
        return torch.load(path, map_location="cpu", weights_only=True)


class _Damaged(Exception):
    """A part of the file does not have its checksum, which torch does not look at."""


def _damaged_part(path: Path) -> str | None:
    """Return the first part of a zip archive whose CRC-32 is wrong; None for other files."""
    if not zipfile.is_zipfile(path):
        return None
    with zipfile.ZipFile(path) as archive:
        return archive.testzip()


def _reading_problem(error: Exception, path: Path) -> str:
    """Say in one clause why a file could not be read and what to do."""
    if isinstance(error, pickle.UnpicklingError):
        blocked = re.search(r"Unsupported (?:global|class)\W+(?:GLOBAL )?([\w.]+)", str(error))
        if blocked or _begins_like_a_pickle(path):
            what = f" ({blocked[1]})" if blocked else ""
            return (
                f"needs pickled code{what}, which is never run; convert the file once, as "
                "docs/checkpoints.md shows under 'Old checkpoints'"
            )
    return "is truncated, damaged or not a checkpoint; download it again and compare its size"


def _begins_like_a_pickle(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(1) == pickle.PROTO

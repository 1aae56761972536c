"""Types of command-line arguments: numbers in a range, files and folders that can be written.

Each raises `argparse.ArgumentTypeError`, which the parser turns into one line with the option.
Options of a config are KEY=VALUE pairs, and have a function of their own.
"""

import argparse
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cae_seg.errors import UserError
from cae_seg.files import check_output_file, check_writable

LARGEST_SEED = 2**32 - 1
PICTURES = ("labels", "colors", "overlay", "panel")
"""What `predict` can write of an image; `panel` sets image and colours over the classes' names."""


def whole_number(least: int, most: int) -> Callable[[str], int]:
    """Return the type of a whole number between two bounds, both included."""

    def parse(text: str) -> int:
        # int() alone also accepts "1_000", " 7" and digits of other scripts.
        value = int(text) if re.fullmatch(r"[+-]?[0-9]{1,18}", text) else None
        if value is None or not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {least} to {most}")
        return value

    return parse


SEED = whole_number(0, LARGEST_SEED)


def number(least: float, *, included: bool = True) -> Callable[[str], float]:
    """Return the type of a finite number from `least` on, which itself may be excluded."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and (value > least or (included and value == least))):
            bound = f"at least {least:g}" if included else f"above {least:g}"
            raise argparse.ArgumentTypeError(f"{text!r} is no number {bound}")
        return value

    return parse


def choices(names: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    """Return the type of a list of names with commas between them, each one of `names`."""

    def parse(text: str) -> tuple[str, ...]:
        chosen = tuple(dict.fromkeys(text.split(",")))
        for name in chosen:
            if name not in names:
                raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(names)}")
        return chosen

    return parse


def output_file(text: str) -> Path:
    """Return the path of a file to write, which must be possible."""
    return _checked(text, check_output_file)


def output_folder(text: str) -> Path:
    """Return the path of a folder to write into, which must be possible."""
    return _checked(text, check_writable)


def _checked(text: str, check: Callable[[Path], None]) -> Path:
    try:
        if not text:
            raise UserError("is empty; name a path")
        check(Path(text))
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return Path(text)


def config_options(pairs: Sequence[str]) -> dict[str, Any]:
    """Read KEY=VALUE pairs as mmengine's own command lines do.

    Raises:
        UserError: a pair has no "=", or a value has unbalanced brackets.
    """
    for pair in pairs:
        if "=" not in pair:
            raise UserError(f"--cfg-options {pair}: write KEY=VALUE")
    if not pairs:
        return {}
    from mmengine.config import DictAction

    parser = argparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--pairs", nargs="+", action=DictAction)
    try:
        return parser.parse_args(["--pairs", *pairs]).pairs
    except Exception as error:  # mmengine asserts and indexes on unbalanced brackets
        raise UserError(f"--cfg-options {' '.join(pairs)}: malformed value") from error

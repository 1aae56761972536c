"""Errors of a sheet as one line: file, line, row, key, value, and what is allowed."""

import difflib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from cae_seg.redaction import redact
from cae_seg.sheet.schema import Data, Experiment, Grid, Resources, Settings, SheetFile


def describe(
    path: Path, node: yaml.Node | None, content: Mapping[str, Any], error: ValidationError
) -> str:
    """Say in one line where a sheet is wrong, how, and what is allowed."""
    first, *more = error.errors()
    place = tuple(part for part in first["loc"] if part != "[key]")
    label, key = _label(content, place)
    message = f"{path}:{line_of(node, place)}: {label}{key}: {reason(first)}"
    return f"{message} (and {len(more)} more)" if more else message


def reason(error: Mapping[str, Any]) -> str:
    """Say what is wrong with one value."""
    value, key = error["input"], str(error["loc"][-1] if error["loc"] else "")
    match error["type"]:
        case "extra_forbidden":
            allowed = _allowed_keys(error["loc"])
            return f"is no key of a sheet; {nearest(key, allowed)}"
        case "missing":
            return "is missing"
        case "literal_error":
            allowed = re.findall(r"'([^']*)'", error["ctx"]["expected"])
            return f"{shown(value)} is not allowed; choose from {', '.join(allowed)}"
        case "too_short" | "string_too_short":
            return "is empty"
        case "model_type" | "dict_type":
            return f"{shown(value)} is not a mapping of keys to values"
        case "string_pattern_mismatch":
            return f"{shown(value)} does not match {error['ctx']['pattern']}"
        case "value_error":
            text = str(error["ctx"]["error"])
            return text if isinstance(value, dict) else f"{shown(value)} {text}"
        case _:
            return f"{shown(value)}: {error['msg'][0].lower()}{error['msg'][1:]}"


def shown(value: Any) -> str:
    """Return a value as a message quotes it, in at most 100 characters, without credentials."""
    text = redact(repr(value))
    return text if len(text) <= 100 else f"{text[:100]}…"


def _allowed_keys(place: tuple) -> list[str]:
    """Return the keys of the mapping that the last part of `place` was found in."""
    model: Any = SheetFile
    parents = {
        "data": Data,
        "datasets": Data,
        "defaults": Settings,
        "experiments": Experiment,
        "grid": Grid,
    }
    for part in place[:-1]:
        model = Resources if part == "resources" else parents.get(part, model)
    return list(model.model_fields)


def _label(content: Mapping[str, Any], place: tuple) -> tuple[str, str]:
    """Split `place` into its row, as a person calls it, and the key."""
    label = ""
    if len(place) > 2 and place[0] in ("experiments", "grid"):
        row = content[place[0]][place[1]]
        label = f"{place[0]}, row {place[1] + 1}: "
        if isinstance(row, dict) and "name" in row:
            label = f"experiment {shown(row['name'])}: "
        place = place[2:]
    return label, ".".join(str(part) for part in place)


def row_line(node: yaml.Node | None, content: Mapping[str, Any], name: str) -> int:
    """Return the line of the last row of that name, or of the grid it came from."""
    rows = content.get("experiments", ())
    places = [
        index for index, row in enumerate(rows) if isinstance(row, dict) and row.get("name") == name
    ]
    return line_of(node, ("experiments", places[-1]) if places else ("grid",))


def line_of(node: yaml.Node | None, place: tuple) -> int:
    """Return the line of the deepest part of `place` that the document holds, from 1."""
    line = node.start_mark.line if node else 0
    for part in place:
        if isinstance(node, yaml.SequenceNode) and isinstance(part, int):
            node = node.value[part]
        elif isinstance(node, yaml.MappingNode):
            found = [(key, value) for key, value in node.value if key.value == str(part)]
            if not found:
                continue
            line, node = found[0][0].start_mark.line, found[0][1]
            continue
        line = node.start_mark.line
    return line + 1


def nearest(wanted: str, known: Iterable[str]) -> str:
    """Suggest what was meant: the nearest names, or all when none is near."""
    known = list(known)
    near = difflib.get_close_matches(wanted[:200], known, n=2, cutoff=0.6)
    if near:
        return f"did you mean {' or '.join(near)}?"
    return f"choose from {', '.join(known[:20])}" if known else "there is none"

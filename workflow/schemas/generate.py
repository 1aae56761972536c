"""Write what is known of a sheet's keys, from the models of `cae_seg.sheet.schema`.

`python workflow/schemas/generate.py` writes `sheet.schema.json`, which editors complete and check
sheets with, and the tables of `config/README.md`. A test fails when either is stale.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from cae_seg.sheet.schema import Data, Experiment, Grid, Resources, Settings, SheetFile

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = ROOT / "workflow/schemas/sheet.schema.json"
README = ROOT / "config/README.md"
MODELS = {
    "sheet": SheetFile,
    "data": Data,
    "experiments": Experiment,
    "grid": Grid,
    "defaults": Settings,
    "resources": Resources,
}


def schema_text() -> str:
    """Return the JSON schema of a sheet."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return json.dumps(schema | SheetFile.model_json_schema(), indent=2) + "\n"


def readme_text(text: str) -> str:
    """Return `text` with the tables between its markers replaced."""
    for name, model in MODELS.items():
        table = "\n".join(_rows(model, shared=name in ("experiments", "grid")))
        block = rf"(<!-- keys: {name} -->\n).*?(<!-- end -->)"
        text, found = re.subn(block, rf"\g<1>{table}\n\g<2>", text, flags=re.DOTALL)
        if not found:
            raise ValueError(f"{README}: has no block for the keys of {name!r}")
    return text


def _rows(model: type[BaseModel], *, shared: bool) -> Iterator[str]:
    """Yield the lines of a table; keys that belong to `defaults` are left to its table."""
    yield "| key | values | default | meaning |"
    yield "| --- | --- | --- | --- |"
    schema = model.model_json_schema()
    for key, described in schema["properties"].items():
        if shared and key in Settings.model_fields:
            continue
        required = key in schema.get("required", ())
        default = "**required**" if required else _default(described)
        yield f"| `{key}` | {_values(described)} | {default} | {described['description']} |"


def _default(described: dict[str, Any]) -> str:
    value = described.get("default")
    if "$ref" in described:
        return "see below"
    if value in (None, [], {}):
        return "–"
    if isinstance(value, dict):
        return ", ".join(f"`{key}: {item}`" for key, item in value.items())
    return f"`{json.dumps(value) if isinstance(value, bool | list) else value}`"


def _values(described: dict[str, Any]) -> str:
    """Say in a word or two what a key takes."""
    if "enum" in described:
        return ", ".join(f"`{value}`" for value in described["enum"])
    if "anyOf" in described:
        kinds = [kind for kind in described["anyOf"] if kind.get("type") != "null"]
        if len(kinds) > 1 and kinds[-1].get("type") == "array":
            return f"{_values(kinds[0])}; one or a list"
        return " or ".join(dict.fromkeys(map(_values, kinds)))
    if "$ref" in described:
        return "mapping"
    kind = described.get("type", "mapping")
    if isinstance(kind, list):
        return " or ".join("text" if part == "string" else part for part in kind)
    if kind == "array":
        return f"list of {_values(described['items'])}s"
    names = {"string": "text", "object": "mapping", "boolean": "`true`, `false`"}
    return names.get(kind, kind)


if __name__ == "__main__":
    SCHEMA.write_text(schema_text())
    README.write_text(readme_text(README.read_text()))

"""Read an experiment sheet: what to run, checked before anything starts."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from cae_seg.errors import UserError
from cae_seg.files import read_text
from cae_seg.sheet.messages import describe, line_of, nearest, row_line
from cae_seg.sheet.rows import RowError, check_datasets, resolve_rows, rows_of
from cae_seg.sheet.schema import Data, Experiment, SheetFile
from cae_seg.sheet.values import one_or_many
from cae_seg.sheet.yaml12 import YamlError, parse_yaml

LARGEST_SHEET = 32 << 20  # bytes; a hundred thousand rows


@dataclass(frozen=True)
class Sheet:
    """A checked sheet: every row complete, every config found, every name unique."""

    path: Path
    results: Path
    data: Data
    experiments: tuple[Experiment, ...]
    datasets: Mapping[str, Data] = field(default_factory=dict)

    def data_of(self, row: Experiment) -> Data:
        """Return the data set of a row."""
        return self.data if row.data is None else self.datasets[row.data]

    def data_label(self, row: Experiment) -> str:
        """Return what a table calls the data set of a row."""
        return self.data.label if row.data is None else row.data

    @property
    def used_data(self) -> tuple[Data, ...]:
        """The data sets that rows use, each once."""
        return tuple(
            {self.data_of(row).root: self.data_of(row) for row in self.experiments}.values()
        )

    def experiment(self, name: str) -> Experiment:
        """Return the row of that name.

        Raises:
            UserError: there is none.
        """
        for row in self.experiments:
            if row.name == name:
                return row
        names = [row.name for row in self.experiments]
        raise UserError(f"{self.path}: no experiment is named {name!r}; {nearest(name, names)}")

    def run_dir(self, name: str, seed: int) -> Path:
        """Return the folder of one run."""
        return self.results / name / f"seed_{seed}"


def load_sheet(path: Path | str, *, root: Path | str = ".") -> Sheet:
    """Read and check a sheet.

    Args:
        path: the YAML file.
        root: the folder that `configs_local` and relative config paths are found in.

    Raises:
        UserError: the file, or something in it, is not as it must be; the message names file,
            line, row, key and value, and what is allowed.
    """
    path = Path(path)
    content, node = _parse(path, _read(path))
    try:
        _merge_defaults(content)
        file = SheetFile.model_validate(content)
        rows = tuple(resolve_rows(rows_of(file), Path(root)))
        check_datasets(file, rows)
    except ValidationError as error:
        raise UserError(describe(path, node, content, error)) from error
    except RowError as error:
        line = row_line(node, content, error.name)
        raise UserError(f"{path}:{line}: experiment {error.name!r}: {error}") from error
    except ValueError as error:
        raise UserError(f"{path}:{line_of(node, ('grid',))}: {error}") from error
    if not rows:
        raise UserError(f"{path}: is empty; write a row under `experiments:` or a `grid:`")
    return Sheet(
        path=path,
        results=Path(file.results),
        data=file.data,
        experiments=rows,
        datasets=file.datasets,
    )


def _read(path: Path) -> str:
    try:
        missing = not path.exists()
    except (OSError, ValueError):
        missing = False  # `read_text` reports what is wrong with the name
    if missing:
        others = [str(other) for other in sorted(path.parent.glob("*.yaml"))]
        raise UserError(f"{path}: no such sheet; {nearest(str(path), others)}")
    return read_text(path, most=LARGEST_SHEET)


def _parse(path: Path, text: str) -> tuple[dict[str, Any], yaml.Node]:
    try:
        content, node = parse_yaml(text)
    except YamlError as error:
        raise UserError(f"{path}:{error.line}: is not a valid sheet ({error})") from error
    if content is None:
        raise UserError(f"{path}: is empty; write a row under `experiments:` or a `grid:`")
    if not isinstance(content, dict):
        raise UserError(f"{path}: must be a mapping with keys such as `experiments`")
    return content, node


def _merge_defaults(content: dict[str, Any]) -> None:
    """Write the sheet's `defaults` into every row and grid that does not set its own."""
    given = content.get("defaults") or {}
    SheetFile.model_validate({"defaults": given})
    for key in ("experiments", "grid"):
        rows = content.get(key)
        if rows is None:
            content.pop(key, None)
            continue
        content[key] = [
            _merged(given, row) if isinstance(row, dict) else row for row in one_or_many(rows)
        ]


def _merged(given: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, Any]:
    """Return `row` over `given`; the nested mappings are merged key by key."""
    merged = {**given, **row}
    for key in ("options", "resources"):
        if isinstance(given.get(key), dict) and isinstance(row.get(key), dict):
            merged[key] = {**given[key], **row[key]}
    return merged

"""The rows of a sheet: spanned by grids, completed from their configs, free of contradictions."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from pydantic import ValidationError

from cae_seg.config_files import ZOO_PREFIX, find_config, named_batch_size
from cae_seg.errors import UserError
from cae_seg.sheet.messages import nearest, reason
from cae_seg.sheet.schema import (
    BUILT_BY_CONFIG,
    HEAD_LABELS,
    MOST_RUNS,
    MOST_TOGETHER,
    RECIPES,
    RESERVED_NAMES,
    Experiment,
    SheetFile,
)

_RATE_IN_NAME = re.compile(r"_(\d+(?:\.\d+)?e-\d+)(?=_|$)")


class RowError(ValueError):
    """Something is wrong with one row as a whole."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name


class _Configs:
    """The config files of the repository, by stem."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._paths = {
            path.stem: str(path.relative_to(root))
            for path in sorted((root / "configs_local").rglob("*.py"))
            if "_base_" not in path.parts
        }

    def find(self, row: Experiment) -> str:
        """Return the path of a row's config, relative to the repository."""
        wanted = row.config or row.recipe
        if wanted is None:
            raise RowError(
                row.name,
                f"config: is missing; {row.backbone!r} has no recipe of its own, only "
                f"{', '.join(RECIPES)} and timm models have",
            )
        if wanted in self._paths:
            return self._paths[wanted]
        if wanted.startswith(ZOO_PREFIX):
            return self._find_in_zoo(wanted, row)
        if wanted.endswith(".py") and (self._root / wanted).is_file():
            return wanted
        raise RowError(row.name, f"config: {wanted!r} is no config; {nearest(wanted, self._paths)}")

    def check_head(self, row: Experiment) -> None:
        """Refuse a head that is neither one of ours nor a config."""
        head = row.head
        if head is None or head in HEAD_LABELS or head in self._paths:
            return
        if head.startswith(ZOO_PREFIX):
            try:
                find_config(head)
            except UserError as error:
                raise RowError(row.name, f"head: {error}") from error
        elif not (head.endswith(".py") and (self._root / head).is_file()):
            known = nearest(head, [*HEAD_LABELS, *self._paths])
            raise RowError(row.name, f"head: {head!r} is no head and no config; {known}")

    def _find_in_zoo(self, wanted: str, row: Experiment) -> str:
        try:
            find_config(wanted)
        except UserError as error:
            raise RowError(row.name, f"config: {error}") from error
        return wanted


def resolve_rows(rows: Iterable[Experiment], root: Path) -> Iterator[Experiment]:
    """Yield the rows with config path and learning rate filled in, and refuse contradictions."""
    names = set()
    configs = _Configs(root)
    for row in rows:
        if row.name in names:
            raise RowError(row.name, "name: two rows have this name; make it unique")
        if row.name.lower() in RESERVED_NAMES:
            raise RowError(row.name, "name: is a file or folder of the results; choose another")
        names.add(row.name)
        config = configs.find(row)
        _check_backbone(row, Path(config).stem)
        configs.check_head(row)
        _check_nodes(row)
        rate = _checked_rate(row, Path(config).stem)
        yield row.model_copy(update={"config": config, "learning_rate": rate})


def rows_together(rows: Iterable[Experiment]) -> dict[str, tuple[Experiment, ...]]:
    """Return the rows that train together over one frozen backbone, by the name of each.

    Rows that train alone are left out.
    """
    alike: dict[str, list[Experiment]] = {}
    for row in rows:
        if (common := row.trains_with) is not None:
            alike.setdefault(common, []).append(row)
    jobs = [
        tuple(rows[begin : begin + MOST_TOGETHER])
        for rows in alike.values()
        for begin in range(0, len(rows), MOST_TOGETHER)
    ]
    return {row.name: job for job in jobs if len(job) > 1 for row in job}


def check_datasets(file: SheetFile, rows: Iterable[Experiment]) -> None:
    """Refuse rows whose data set the sheet does not have, and data sets that share a folder."""
    used = {}
    for row in rows:
        if row.data is not None and row.data not in file.datasets:
            known = nearest(row.data, file.datasets)
            raise RowError(row.name, f"data: {row.data!r} is not under `datasets`; {known}")
        found = file.data if row.data is None else file.datasets[row.data]
        if used.setdefault(Path(found.root), found) != found:
            raise RowError(row.name, f"data: two data sets have the root {found.root}; set another")


def _check_backbone(row: Experiment, stem: str) -> None:
    """Refuse a label that is not what a shipped config builds; `ViT-B/16` is a `ViT-B`."""
    if row.timm:
        return
    for pattern, backbone in BUILT_BY_CONFIG.items():
        if re.search(pattern, stem) and row.backbone.split("/")[0] != backbone:
            raise RowError(
                row.name, f"backbone: {row.backbone!r} contradicts the config {stem} ({backbone})"
            )


def _check_nodes(row: Experiment) -> None:
    if row.gpus and row.gpus % row.nodes:
        raise RowError(row.name, f"gpus: {row.gpus} do not divide evenly over {row.nodes} nodes")
    images = row.batch_size or named_batch_size(row.stem) or 16
    if row.gpus and images % row.gpus:
        fit = " ".join(str(gpus) for gpus in range(1, images + 1) if images % gpus == 0)
        raise RowError(
            row.name,
            f"gpus: {row.gpus} do not divide the {images} images of an iteration; {fit} do",
        )


def _checked_rate(row: Experiment, stem: str) -> str:
    """Return the row's learning rate, which the name of its config may hold or forbid."""
    found = _RATE_IN_NAME.search(stem)
    named = found.group(1) if found else None
    if row.learning_rate is None and named is None:
        raise RowError(row.name, f"learning_rate: is missing; the config {stem} names none")
    if row.learning_rate is None:
        return named
    if named is not None and float(named) != float(row.learning_rate):
        raise RowError(
            row.name,
            f"learning_rate: {row.learning_rate} contradicts the config {stem}; "
            f"leave `config` out to use the recipe {row.recipe} with any rate",
        )
    return row.learning_rate


def rows_of(file: SheetFile) -> list[Experiment]:
    """Return the rows of a sheet and those that its grids expand to.

    Raises:
        ValueError: they are too many, a pattern holds an unknown field, or a row made by a grid
            has a value that is not allowed.
    """
    runs = sum(len(row.seeds) for row in file.experiments)
    runs += sum(grid.size * len(grid.seeds) for grid in file.grid)
    if runs > MOST_RUNS:
        raise ValueError(f"expands to {runs} runs, more than {MOST_RUNS}; use several sheets")
    return [*file.experiments, *_grid_rows(file)]


def _grid_rows(file: SheetFile) -> Iterator[Experiment]:
    for grid in file.grid:
        for row in grid.rows():
            try:
                yield Experiment.model_validate(row)
            except ValidationError as error:
                first = error.errors()[0]
                place = ".".join(map(str, first["loc"]))
                raise ValueError(
                    f"grid: its row {row['name']!r}: {place}: {reason(first)}"
                ) from error

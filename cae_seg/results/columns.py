"""The columns of the results table: what each shows, which are chosen, which fold into a note."""

import difflib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from cae_seg.errors import UserError

NOTHING = "–"


@dataclass(frozen=True)
class Column:
    """One column of the table.

    Attributes:
        name: its heading.
        show: a row of `aggregate.aggregate` → what the cell shows, plain text.
        fixed: whether it stays in the table even if all rows show the same.
    """

    name: str
    show: Callable[[Any], str]
    fixed: bool = False


@dataclass(frozen=True)
class Cells:
    """A table as text.

    Attributes:
        columns: headings, in order.
        rows: a text per column.
        same: heading → what all rows show, of the columns that are folded away.
        empty: headings of folded columns in which no row has anything.
        configs: path of each config, in the order of the numbers that the column Config shows.
    """

    columns: list[str]
    rows: list[list[str]]
    same: dict[str, str]
    empty: list[str]
    configs: list[str]


def make_cells(
    frame: pd.DataFrame, *, partial: bool = False, chosen: Sequence[str] | None = None
) -> Cells:
    """Return the table as text.

    Args:
        frame: what `aggregate.aggregate` returns.
        partial: add how far each row is.
        chosen: headings, or names of columns of the frame, in the order wanted. By default the
            columns of the published table and ours, without those that tell nothing.

    Raises:
        UserError: a chosen column is unknown.
    """
    configs = list(dict.fromkeys(frame["config"]))
    known = {column.name: column for column in _columns(frame, configs)}
    if chosen is None:
        columns = [c for c in known.values() if c.name != "State" or partial]
        shown, same, empty = _fold(frame, columns)
    else:
        shown, same, empty = [_find(name, known, frame) for name in chosen], {}, []
    rows = [[column.show(row) for column in shown] for row in frame.itertuples()]
    return Cells([column.name for column in shown], rows, same, empty, configs)


def _columns(frame: pd.DataFrame, configs: list[str]) -> list[Column]:
    """Return every column by default, those of the published table first."""
    optional = [
        Column(name, lambda row, key=key: getattr(row, key))
        for name, key in (("Data", "data_set"), ("Method", "method"), ("Head", "head"))
        if frame[key].nunique() > 1
    ]
    several_sheets = frame["sheet"].nunique() > 1
    return [
        Column("Backbone", lambda row: row.backbone, fixed=True),
        Column("#Pretrained Epoch", lambda row: str(row.pretraining_epochs), fixed=True),
        Column("mIoU", _score, fixed=True),
        Column("Config", lambda row: f"[{configs.index(row.config) + 1}]", fixed=True),
        Column("Learning rate", lambda row: row.learning_rate, fixed=True),
        *optional,
        Column("Seeds", lambda row: row.seeds or NOTHING),
        Column("Spread", _spread),
        Column("Published mIoU", lambda row: _published(row.published_miou)),
        Column("Difference", lambda row: _decimal(row.difference, "+.2f")),
        *_multi_scale(frame),
        Column("GPU-hours", _gpu_hours),
        *([Column("Sheet", lambda row: Path(row.sheet).stem)] if several_sheets else []),
        Column("Notes", lambda row: row.notes),
        Column("State", lambda row: row.state, fixed=True),
    ]


def _multi_scale(frame: pd.DataFrame) -> list[Column]:
    """Return columns of numbers with flips and several scales, if there are such numbers."""
    columns = []
    if frame["mIoU_multi_scale"].notna().any():
        columns.append(
            Column("Multi-scale mIoU", lambda row: _decimal(row.mIoU_multi_scale, ".2f"))
        )
    if frame["published_miou_multi_scale"].notna().any():
        columns.append(
            Column("Published multi-scale", lambda row: _published(row.published_miou_multi_scale))
        )
    return columns


def _score(row: Any) -> str:
    if row.n > 1:
        return f"{row.mIoU:.2f} ± {row.mIoU_std:.2f} (n={row.n})"
    return _decimal(row.mIoU, ".2f")


def _spread(row: Any) -> str:
    return f"{row.mIoU_min:.2f} to {row.mIoU_max:.2f}" if row.n > 1 else NOTHING


def _gpu_hours(row: Any) -> str:
    return _decimal(row.gpu_hours, ".3g" if row.gpu_hours < 10 else ".0f")


def _published(value: float) -> str:
    """Return a published number with the one or two decimals that it was published with."""
    text = _decimal(value, ".2f")
    return text[:-1] if text.endswith("0") else text


def _decimal(value: float, spec: str) -> str:
    return NOTHING if math.isnan(value) else format(value, spec)


def _fold(
    frame: pd.DataFrame, columns: list[Column]
) -> tuple[list[Column], dict[str, str], list[str]]:
    """Take away the columns that tell no row from another; in a table of one row, empty ones."""
    shown, same, empty = [], {}, []
    for column in columns:
        texts = {column.show(row) for row in frame.itertuples()}
        if column.fixed or (texts - {NOTHING, ""} and (len(texts) > 1 or len(frame) == 1)):
            shown.append(column)
        elif texts <= {NOTHING, ""}:
            empty.append(column.name)
        else:
            same[column.name] = texts.pop()
    return shown, same, empty


def _find(name: str, known: dict[str, Column], frame: pd.DataFrame) -> Column:
    by_name = {key.lower(): column for key, column in known.items()}
    found = by_name.get(name.strip().lower())
    if found is not None:
        return found
    if name.strip() in frame.columns:
        key = name.strip()
        return Column(key, lambda row: _plain(getattr(row, key)))
    names = [*known, *frame.columns]
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(names)}"
    raise UserError(f"--columns {name.strip()}: no such column; {hint}")


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return _decimal(value, ".4g")
    return str(value)

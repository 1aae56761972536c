r"""The results table as LaTeX, for the packages booktabs and siunitx (version 3)."""

import re
from collections.abc import Sequence
from pathlib import Path

from cae_seg.results.columns import NOTHING, Cells

ESCAPES = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "&": r"\&",
        "%": r"\%",
        "$": r"\$",
        "#": r"\#",
        "_": r"\_",
        "{": r"\{",
        "}": r"\}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "±": r"$\pm$",
        "×": r"$\times$",
        "–": "--",
    }
)
NUMBER = re.compile(r"([+-]?\d+)(?:\.(\d+))?(?: ± (\d+)\.(\d+) \(n=\d+\))?")


def render_latex(cells: Cells, bold: Sequence[bool], notes: Sequence[str]) -> str:
    """Return a tabular; columns of numbers are siunitx's `S` columns.

    Args:
        cells: the table as text.
        bold: whether a row's learning rate is set bold.
        notes: lines of text under the table.
    """
    columns = list(zip(*cells.rows, strict=True)) if cells.rows else [()] * len(cells.columns)
    kinds = [
        "l" if name in ("Learning rate", "Seeds") else _kind(texts)
        for name, texts in zip(cells.columns, columns, strict=True)
    ]
    head = " & ".join(f"{{{escape(name)}}}" for name in cells.columns)
    rows = [
        " & ".join(
            _cell(text, kind, name == "Learning rate", strong)
            for text, kind, name in zip(row, kinds, cells.columns, strict=True)
        )
        for row, strong in zip(cells.rows, bold, strict=True)
    ]
    below = [rf"{escape(note)}\par" for note in notes]
    return "\n".join(
        [
            r"% \usepackage{booktabs}",
            r"% \usepackage{siunitx}  % version 3",
            rf"\begin{{tabular}}{{{''.join(kinds)}}}",
            r"\toprule",
            rf"{head} \\",
            r"\midrule",
            *(rf"{row} \\" for row in rows),
            r"\bottomrule",
            r"\end{tabular}",
            r"\par\smallskip",
            r"{\footnotesize\raggedright",
            *below,
            r"}",
            "",
        ]
    )


def config_list(configs: Sequence[str]) -> str:
    """Return the legend of the column Config."""
    return "; ".join(f"[{i}] {Path(path).stem}" for i, path in enumerate(configs, 1))


def escape(text: str) -> str:
    """Return text with LaTeX's special characters escaped."""
    return text.translate(ESCAPES)


def _kind(texts: Sequence[str]) -> str:
    """Return the column type: `S` with the width of its numbers, or `l`."""
    found = [NUMBER.fullmatch(text) for text in texts if text not in (NOTHING, "")]
    if not found or not all(found):
        return "l"
    whole = max(len(match[1].lstrip("+-")) for match in found)
    decimals = max(len(match[2] or "") for match in found)
    sign = "+" if any(match[1][0] in "+-" for match in found) else ""
    errors = [len((match[3] + match[4]).lstrip("0")) for match in found if match[3]]
    error = f"({max(errors)})" if errors else ""
    separate = ",uncertainty-mode=separate" if errors else ""
    return f"S[table-format={sign}{whole}.{decimals}{error}{separate}]"


def _cell(text: str, kind: str, is_rate: bool, strong: bool) -> str:
    if is_rate and re.fullmatch(r"[\d.]+(e[+-]?\d+)?", text):
        return rf"\textbf{{\boldmath\num{{{text}}}}}" if strong else rf"\num{{{text}}}"
    if kind == "l":
        return f"{{{escape(text)}}}"
    match = NUMBER.fullmatch(text)
    if match is None:
        return f"{{{escape(text)}}}"
    return re.sub(r" \(n=\d+\)", "", text).replace("±", "+-")

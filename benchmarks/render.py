"""Results as docs/benchmarks.md."""

from pathlib import Path
from typing import Any

from benchmarks.suite import RESULTS
from cae_seg.files import atomic_write_text, read_json

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
HEAD = """# Benchmarks

Stock mmsegmentation against cae-seg: the same work on the same weights, in turns in one process,
after a warm-up; medians. Written by `make bench` (`python -m benchmarks [case …]`); the numbers lie
in `benchmarks/results/`.

**Stock** is what one would run otherwise, with the published settings: mmsegmentation's
`EncoderDecoder`, `UPerHead`, `FCNHead`, its BEiT attention (scores, bias and soft-max as tensors),
one window at a time, its transforms and its `IoUMetric`.
"""
TABLE = """| what | stock | ours | ratio | target | agreement |
| --- | ---: | ---: | ---: | ---: | --- |"""
COMPARED = {"what", "stock", "ours", "ratio", "target", "agreement", "unit"}


def write() -> None:
    """Render all results that lie in the results folder."""
    results = [read_json(path) for path in sorted(RESULTS.glob("*.json"))]
    atomic_write_text(PAGE, "\n".join([HEAD, *(_section(result) for result in results)]))


def line(row: dict[str, Any]) -> str:
    """Return a row as one line for a terminal."""
    return ", ".join(
        f"{key} {_text(value)}" for key, value in row.items() if not key.endswith("_all")
    )


def _section(result: dict[str, Any]) -> str:
    facts = result["machine"]
    where = facts.get("gpu") or f"{facts['cores']} cores, {facts['processor']}"
    versions = ", ".join(f"{name} {v}" for name, v in facts["versions"].items() if v)
    lines = [
        f"## {result['case'].replace('_', ' ').capitalize()}, {result['device']}",
        "",
        f"{facts['date']}; {where}; {facts['threads']} threads; "
        f"load before {facts['load_before']}; Python {facts['python']}; {versions}.",
        "",
    ]
    compared = [row for row in result["rows"] if "ratio" in row]
    if compared:
        lines.append(TABLE)
        lines += [_compared(row) for row in compared]
        lines.append("")
    for row in result["rows"]:
        rest = {k: v for k, v in row.items() if k not in COMPARED and not k.endswith("_all")}
        if rest:
            items = "; ".join(f"{k.replace('_', ' ')} {_text(v)}" for k, v in rest.items())
            lines.append(f"- {row['what']}: {items}")
    return "\n".join([*lines, ""])


def _compared(row: dict[str, Any]) -> str:
    unit = row.get("unit", "s")
    target = f"≥ {row['target']:g}" if row.get("target") else ""
    cells = [row["what"], *(f"{row[side]:.3g} {unit}" for side in ("stock", "ours"))]
    cells += [f"{row['ratio']:.2f}", target, row.get("agreement", "")]
    return f"| {' | '.join(cells)} |"


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)

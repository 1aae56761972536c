"""Results as docs/benchmarks.md."""

from typing import Any

from benchmarks.suite import RESULTS, ROOT
from cae_seg.files import atomic_write_text, read_json

PAGE = ROOT / "docs" / "benchmarks.md"
HEAD = """# Benchmarks

Stock mmsegmentation against cae-seg on the same weights. Written by `make bench`
(`python -m benchmarks [case …]`) from the numbers in `benchmarks/results/`.

**Timed** sections measure seconds on the machine that each one names: both sides in turns, after a
warm-up; medians. A ratio is the mean of the rounds' ratios, its spread the width of that mean's
95 % interval; rounds are made until it is below 10 %, eight at most. **Counted** sections run
nothing on a GPU. They follow every operation of torch with fake tensors on a CUDA device that need
not exist, and count what would be launched, read, written and waited for; training under fp16
autocast, evaluation in fp32. No figure is an estimate, and no time on a GPU has been measured yet:
what a count says about speed there is an inference. Competing processes are endless loops.

**Stock** is what one would run otherwise, with the published settings: mmsegmentation's
`EncoderDecoder`, `UPerHead`, `FCNHead`, its BEiT attention (scores, bias and soft-max as tensors),
one window at a time, its transforms and its `IoUMetric`.
"""
COUNTED = {
    "kernels": "kernels",
    "gigabytes": "GB read and written",
    "tflop": "TFLOP",
    "blocking_copies": "copies that block",
    "waits": "waits for the device",
    "peak_gb": "peak GB allocated",
}
TABLE = """| what | stock | ours | ratio | spread | target | agreement |
| --- | ---: | ---: | ---: | ---: | ---: | --- |"""
COMPARED = {"what", "stock", "ours", "ratio", "spread", "target", "agreement", "unit"}


def write() -> None:
    """Render all results in the results folder."""
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
        f"## {result['case'].replace('_', ' ').capitalize()}, {_how(result)}",
        "",
        f"{facts['date']}; {where}; {facts['threads']} threads; "
        f"load before {facts['load_before']}; Python {facts['python']}; {versions}.",
        "",
    ]
    if "note" in result:
        lines += [result["note"], ""]
    counted = [row for row in result["rows"] if "ours_kernels" in row]
    if counted:
        lines += [*_counted(counted), ""]
    compared = [row for row in result["rows"] if "ratio" in row]
    if compared:
        lines.append(TABLE)
        lines += [_compared(row) for row in compared]
        lines.append("")
    for row in result["rows"]:
        if row in counted:
            continue
        rest = {k: v for k, v in row.items() if k not in COMPARED and not k.endswith("_all")}
        if rest:
            items = "; ".join(f"{k.replace('_', ' ')} {_text(v)}" for k, v in rest.items())
            lines.append(f"- {row['what']}: {items}")
    return "\n".join([*lines, ""])


def _how(result: dict[str, Any]) -> str:
    if result["case"] == "counts":
        return "counted for a CUDA device"
    count = result["machine"].get("competing")
    busy = f", with {count} competing process{'es' if count > 1 else ''}" if count else ""
    return f"timed on {result['device']}{busy}"


def _counted(rows: list[dict[str, Any]]) -> list[str]:
    """Return a table of counts: stock → ours."""
    lines = [
        f"| what | {' | '.join(COUNTED.values())} |",
        f"| --- | {' | '.join(['---:'] * len(COUNTED))} |",
    ]
    for row in rows:
        cells = (f"{_text(row[f'stock_{k}'])} → {_text(row[f'ours_{k}'])}" for k in COUNTED)
        lines.append(f"| {row['what']} | {' | '.join(cells)} |")
    return lines


def _compared(row: dict[str, Any]) -> str:
    unit = row.get("unit", "s")
    target = f"≥ {row['target']:g}" if row.get("target") else ""
    cells = [row["what"], *(f"{row[side]:.3g} {unit}" for side in ("stock", "ours"))]
    spread = row.get("spread")
    cells += [f"{row['ratio']:.2f}", "" if spread is None else f"{spread:.1%}"]
    cells += [target, row.get("agreement", "")]
    return f"| {' | '.join(cells)} |"


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)

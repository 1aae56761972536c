"""The test of the published claim as a page to read and as JSON."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cae_seg.files import atomic_write_json, atomic_write_text
from cae_seg.results.collect import Sheets, collect_runs
from cae_seg.results.lr_trend import (
    CONFIDENCE,
    INCONCLUSIVE,
    SMALL_DIFF,
    EpochGroup,
    Finding,
    TrendTest,
    check_claim,
)

METHOD = f"""## Method

The seeds' standard deviation is pooled over all cells (pretraining length × learning rate),
assuming that it is the same in each. The best rates come from simultaneous confidence sets for
multiple comparisons with the best (Hsu 1984, Annals of Statistics 12); *small* is an equivalence
test of all pairs within {SMALL_DIFF:g} point (Berger and Hsu 1996, Statistical Science 11), its
opposite a Tukey-Kramer comparison of all pairs. Each half is decided at confidence {CONFIDENCE:g}:
a sweep for which it is false is called supported, or one for which it is true contradicted, at most
{100 * (1 - CONFIDENCE):.0f} times in 100.
"""


def write_claim(sheets: Sheets, out: Path) -> list[TrendTest]:
    """Test the claim on the results of sheets; write `out` as Markdown, and a JSON file by it."""
    tests = check_claim(collect_runs(sheets))
    atomic_write_text(out, render_claim(tests))
    atomic_write_json(out.with_suffix(".json"), claim_as_dict(tests))
    return tests


def claim_as_dict(tests: Sequence[TrendTest]) -> dict[str, Any]:
    """Return the tests for a JSON file."""
    written = [asdict(test) | {"summary": summary(test)} for test in tests]
    return {"schema": 2, "confidence": CONFIDENCE, "small": SMALL_DIFF, "tests": written}


def render_claim(tests: Sequence[TrendTest]) -> str:
    """Return the tests as Markdown."""
    parts = ["# The published claim"]
    for test in tests:
        among = f" ({test.among})" if test.among else ""
        parts += [f"## {test.backbone}, pretrained with {test.method}{among}", _halves(test)]
        if test.groups:
            parts += [summary(test), _table(test.groups)]
        if test.single_seed_cells and test.freedom:
            parts.append(_borrowed(test))
    return "\n\n".join([*parts, METHOD])


def summary(test: TrendTest) -> str:
    """Return one sentence with one number for each half of the claim; empty without a sweep."""
    if not test.groups:
        return ""
    first, last = test.groups[0], test.groups[-1]
    largest = max(test.groups, key=lambda group: group.difference)
    kind = ", ".join(part for part in (test.method, test.among) if part)
    who = f"{test.backbone} ({kind})" if kind else test.backbone
    moved = f"{first.best_rate} at {first.epochs} epochs"
    if last is not first:
        moved += f" and {last.best_rate} at {last.epochs}"
    return (
        f"For {who}, the best of {len(first.means)} learning rates was {moved}"
        f"{_trend_number(test.trend)}; the rates of one pretraining length differed by up to "
        f"{largest.difference:.2f} points of mIoU{_size_number(test.size)}; {_basis(test)}."
    )


def _trend_number(finding: Finding) -> str:
    if finding.confidence is None:
        return ""
    what = "that it falls" if finding.holds else "that it does not fall"
    return f" (confidence {_confidence(finding)} {what} with longer pretraining)"


def _size_number(finding: Finding) -> str:
    if finding.confidence is None:
        return ""
    what = (
        f"that all are below {SMALL_DIFF:g}"
        if finding.holds
        else f"that some are above {SMALL_DIFF:g}"
    )
    return f" (confidence {_confidence(finding)} {what})"


def _confidence(finding: Finding) -> str:
    """Return the confidence such that rounding never moves it across the limit."""
    value = finding.confidence
    if value > 0.999:
        return "> 0.999"
    return f"{int(value * 1000) / 1000:.3f}"


def _basis(test: TrendTest) -> str:
    seeds = [n for group in test.groups for n in group.seeds.values()]
    per_cell = f"{min(seeds)}" if min(seeds) == max(seeds) else f"{min(seeds)} to {max(seeds)}"
    runs = f"{test.runs} runs in {test.cells} cells, {per_cell} seeds per cell"
    if test.scatter is None:
        return f"{runs}, no estimate of scatter"
    freedom = f"{test.freedom} degree{'s' if test.freedom > 1 else ''} of freedom"
    return f"{runs}, standard deviation of seeds {test.scatter:.2f} on {freedom}"


def _halves(test: TrendTest) -> str:
    trend = "The better the pretraining, the smaller the best learning rate."
    size = "The differences between learning rates are small."
    falls, small = ("it falls", "it does not fall"), ("they are small", "they are not small")
    return f"- *{trend}* {_verdict(test.trend, falls)}\n- *{size}* {_verdict(test.size, small)}"


def _verdict(finding: Finding, words: tuple[str, str]) -> str:
    name = f"**{finding.verdict.capitalize()}**"
    if finding.confidence is None:
        return f"{name}: {finding.reason}."
    if finding.verdict != INCONCLUSIVE:
        return f"{name} (confidence {_confidence(finding)})."
    return (
        f"{name}: by the means {words[0] if finding.holds else words[1]}, but the confidence is "
        f"only {_confidence(finding)} ({CONFIDENCE:g} is needed); add seeds."
    )


def _borrowed(test: TrendTest) -> str:
    return (
        f"{test.single_seed_cells} of {test.cells} cells have one seed; they are taken to scatter "
        "as the other cells do."
    )


def _table(groups: Sequence[EpochGroup]) -> str:
    rows = [
        "| Epochs | Best learning rate | mIoU | Largest difference"
        f" | Plausible as best ({CONFIDENCE:g}) | Seeds |",
        "|---|---|---|---|---|---|",
    ]
    for group in groups:
        seeds = ", ".join(f"{rate}: {n}" for rate, n in group.seeds.items())
        rows.append(
            f"| {group.epochs} | {group.best_rate} | {group.means[group.best_rate]:.2f} "
            f"| {group.difference:.2f} | {', '.join(group.plausible)} | {seeds} |"
        )
    return "\n".join(rows)

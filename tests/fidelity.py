"""Measured distances from the published code, asserted in the tests and rendered as a table.

CAE_SEG_FIDELITY=fidelity.jsonl pytest tests/models tests/data
python tests/fidelity.py fidelity.jsonl
"""

import json
import os
import sys
from pathlib import Path

import torch


def relative(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Return ‖actual − expected‖ / ‖expected‖ in double precision."""
    actual, expected = (torch.as_tensor(t).detach().double() for t in (actual, expected))
    assert actual.shape == expected.shape, f"{tuple(actual.shape)} against {tuple(expected.shape)}"
    return float((actual - expected).norm() / expected.norm().clamp_min(1e-30))


def largest(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the largest absolute difference in double precision."""
    actual, expected = (torch.as_tensor(t).detach().double() for t in (actual, expected))
    assert actual.shape == expected.shape, f"{tuple(actual.shape)} against {tuple(expected.shape)}"
    return float((actual - expected).abs().max()) if expected.numel() else 0.0


def record(stage: str, measured: float, tolerance: float) -> None:
    """Assert `measured <= tolerance`, and note the pair where `CAE_SEG_FIDELITY` names a file."""
    measured = float(measured)
    path = os.environ.get("CAE_SEG_FIDELITY")
    if path:
        line = {"stage": stage, "measured": measured, "tolerance": tolerance}
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
    assert measured <= tolerance, f"{stage}: {measured:.3g} is over the tolerance {tolerance:.3g}"


def render(path: Path) -> str:
    """Return the notes of a test run as a Markdown table: worst value of each stage."""
    worst: dict[str, dict] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        note = json.loads(line)
        known = worst.setdefault(note["stage"], note)
        if not note["measured"] <= known["measured"]:
            worst[note["stage"]] = note
    rows = ["| stage | measured | tolerance |", "| --- | ---: | ---: |"]
    for note in worst.values():
        measured = "exact" if note["measured"] == 0 else f"{note['measured']:.1e}"
        tolerance = "exact" if note["tolerance"] == 0 else f"{note['tolerance']:.0e}"
        rows.append(f"| {note['stage']} | {measured} | {tolerance} |")
    return "\n".join(rows)


if __name__ == "__main__":
    print(render(Path(sys.argv[1])))

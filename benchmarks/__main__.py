"""Measure the cases; write benchmarks/results/*.json and docs/benchmarks.md."""

import argparse
import logging
import sys
import warnings

from benchmarks import render
from benchmarks.suite import CASES, RESULTS, Options, competing, machine
from cae_seg.files import atomic_write_json

TARGET_UNDER_LOAD = 1.5  # times stock, whatever it is on an idle machine


def main(arguments: list[str] | None = None) -> int:
    """Run the cases that are named, or all; return the exit status."""
    _register()
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("cases", nargs="*", metavar="case", help=f"of {', '.join(sorted(CASES))}")
    parser.add_argument("--device", choices=["cpu", "cuda", "all"], default="all")
    parser.add_argument("--rounds", type=int, help="measurements of each side")
    parser.add_argument(
        "--quick", action="store_true", help="small sizes, one round, nothing written"
    )
    parser.add_argument(
        "--competing", type=int, default=0, metavar="N", help="processes that keep a core busy each"
    )
    asked = parser.parse_args(arguments)
    unknown = sorted(set(asked.cases) - set(CASES))
    if unknown:
        parser.error(f"{unknown[0]}: no such case; there are {', '.join(sorted(CASES))}")
    rounds = asked.rounds or (1 if asked.quick else None)
    for device in _devices(asked.device):
        for name in asked.cases or sorted(CASES):
            _run(name, Options(device, rounds, asked.quick), asked.competing)
    if not asked.quick:
        render.write()
    return 0


def _register() -> None:
    """Import the modules that hold cases."""
    from benchmarks import (  # noqa: F401
        counts,
        cpu_paths,
        evaluation,
        frozen_sweep,
        host_work,
        scale,
        start_up,
        training,
        transforms,
        upernet,
    )


def _devices(asked: str) -> list[str]:
    import torch

    if asked != "all":
        return [asked]
    return ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def _run(name: str, options: Options, load: int) -> None:
    facts = machine(options.device) | {"competing": load}
    print(f"{name} on {options.device}", flush=True)
    with competing(load):
        rows = CASES[name](options)
    for row in rows:
        if load and row.get("target"):
            row["target"] = min(row["target"], TARGET_UNDER_LOAD)
        print("  " + render.line(row), flush=True)
    if rows and not options.quick:
        result = {"case": name, "device": options.device, "machine": facts, "rows": rows}
        busy = "_busy" if load else ""
        atomic_write_json(RESULTS / f"{name}_{options.device}{busy}.json", result)


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    sys.exit(main())

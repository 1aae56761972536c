"""The rooms of the package: who may import whom (docs/architecture.md)."""

import ast
import itertools
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "cae_seg"
FLOORS = {
    **dict.fromkeys(("cli", "doctor", "clean"), 5),
    **dict.fromkeys(("launch", "tracking", "site_checks"), 4),
    **dict.fromkeys(("engine", "results"), 3),
    "run": 2,
    **dict.fromkeys(("models", "data", "sheet"), 1),
}
TOP = ("registration", "api")  # modules that gather rooms for users of the package


def modules() -> dict[str, Path]:
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts).removesuffix(".__init__")] = path
    return found


MODULES = modules()


def imports(path: Path) -> Iterator[str]:
    """Yield the modules of ours that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in MODULES else node.module for name in whole)


GRAPH = {name: {m for m in imports(path) if m in MODULES} for name, path in MODULES.items()}


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def floor(module: str) -> int:
    return FLOORS.get(room(module), 0)


def test_a_room_imports_only_from_floors_below():
    wrong = [
        (name, imported)
        for name, targets in GRAPH.items()
        for imported in targets
        if room(name) not in (*TOP, room(imported))
        and room(imported) not in (*TOP, "")
        and floor(imported) >= max(floor(name), 1)
        and not (room(name) == "cli" and room(imported) in ("doctor", "clean"))
    ]
    assert wrong == []


def test_there_are_no_import_cycles():
    reach = {name: set(targets) for name, targets in GRAPH.items()}
    changed = True
    while changed:
        changed = False
        for targets in reach.values():
            more = set(itertools.chain.from_iterable(reach[target] for target in targets))
            if not more <= targets:
                targets |= more
                changed = True
    assert sorted(name for name, targets in reach.items() if name in targets) == []

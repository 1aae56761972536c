"""Find a config file by its path, by the stem of a shipped config, or in mmsegmentation's zoo.

No library is imported, so that the command line and Snakemake can check names at once.
"""

import ast
import difflib
import importlib.util
import re
from functools import cache
from pathlib import Path

from cae_seg.errors import UserError

SHIPPED = Path("configs_local")
ZOO_PREFIX = "mmseg::"
# `_8xb2-` (GPUs x images of each) in the names of the zoo, `_8x4_` in its older ones.
_GPUS_AND_IMAGES = (re.compile(r"_(\d+)xb(\d+)(?=[_-])"), re.compile(r"_(\d)x(\d{1,2})(?=[_-])"))


def find_config(name: str | Path, root: Path | str = ".") -> Path:
    """Return the path of a config file.

    Args:
        name: a path, the stem of a file under `configs_local`, or `mmseg::FAMILY/NAME.py` from the
            configs of the installed mmsegmentation.
        root: the folder that `configs_local` and relative paths are found in.

    Raises:
        UserError: there is no such file; the message names the nearest.
    """
    name, root = str(name), Path(root)
    if name.startswith(ZOO_PREFIX):
        return _find_in_zoo(name)
    if (path := root / name).is_file():
        return path
    shipped = shipped_configs(root)
    if name in shipped:
        return shipped[name]
    known = shipped or {found.stem: found for found in sorted(path.parent.glob("*.py"))}
    near = difflib.get_close_matches(Path(name).stem, known, n=3, cutoff=0.5) or list(known)[:3]
    hint = f"; nearest: {', '.join(str(known[stem]) for stem in near)}" if near else ""
    raise UserError(f"{name}: no such config{hint}")


def shipped_configs(root: Path | str = ".") -> dict[str, Path]:
    """Return the configs under `configs_local` by stem, without the parts they are made of."""
    found = sorted((Path(root) / SHIPPED).rglob("*.py"))
    return {path.stem: path for path in found if "_base_" not in path.parts}


@cache
def zoo_configs() -> dict[str, Path]:
    """Return the configs of the installed mmsegmentation by FAMILY/NAME.py; empty without it."""
    folder = zoo_folder()
    found = sorted(folder.rglob("*.py"))
    return {
        path.relative_to(folder).as_posix(): path for path in found if "_base_" not in path.parts
    }


def zoo_folder() -> Path:
    """Return the folder of mmsegmentation's configs; one that is not there without the package."""
    package = importlib.util.find_spec("mmseg")
    origin = package.origin if package else None
    return Path(origin or "mmseg/__init__.py").parent / ".mim" / "configs"


def files_of_config(path: Path) -> list[Path]:
    """Return a config file and the files that it inherits from, as far as they can be told."""
    found: list[Path] = []
    waiting = [path]
    while waiting:
        file = waiting.pop()
        if file in found or not file.is_file():
            continue
        found.append(file)
        waiting += [file.parent / base for base in _bases(file)]
    return found


def _bases(file: Path) -> list[str]:
    try:
        tree = ast.parse(file.read_text())
    except (SyntaxError, UnicodeDecodeError):
        return []
    for node in tree.body:
        if isinstance(node, ast.Assign) and "_base_" in map(ast.unparse, node.targets):
            try:
                bases = ast.literal_eval(node.value)
            except ValueError:
                return []
            return [bases] if isinstance(bases, str) else list(bases)
    return []


def named_batch_size(stem: str) -> int | None:
    """Return the images of one iteration over all GPUs where the name of a config holds them."""
    for pattern in _GPUS_AND_IMAGES:
        if found := pattern.search(f"_{stem}_"):
            return int(found[1]) * int(found[2])
    return None


def _find_in_zoo(name: str) -> Path:
    known, wanted = zoo_configs(), name.removeprefix(ZOO_PREFIX)
    wanted = wanted if wanted.endswith(".py") else f"{wanted}.py"
    if wanted in known:
        return known[wanted]
    near = difflib.get_close_matches(wanted, known, n=3, cutoff=0.5)
    near = near or sorted({Path(path).parts[0] for path in known})[:60]
    hint = ", ".join(f"{ZOO_PREFIX}{path}" for path in near)
    raise UserError(f"{name}: no such config in mmsegmentation; nearest: {hint or 'none'}")

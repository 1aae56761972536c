"""The config that a training keeps in its weights, read as data.

A config file is a program and runs when it is loaded; weights are data, from any source. The text
of a config in them is therefore parsed, not run: only assignments of literals are accepted. Of the
types that it names only registered ones are built, because mmengine would import any other name
(`os.system` included) and call it with the config's arguments.
"""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import DATASETS, MODELS, TRANSFORMS

from cae_seg.errors import UserError

SCOPE = "mmseg"
LONGEST_TEXT = 1 << 20  # characters; the largest config of mmsegmentation's zoo has 30 000


def config_of_weights(path: Path, contents: dict[str, Any]) -> Config:
    """Build the config kept in weights, of model and validation data, without running any of it.

    Args:
        path: of the weights, for messages.
        contents: what `load_checkpoint_file` returned for it.

    Raises:
        UserError: there is none, or it holds more than literals and registered types.
    """
    meta = contents.get("meta")
    text = meta.get("cfg") if isinstance(meta, dict) else None
    if not isinstance(text, str):
        raise UserError(f"{path}: contains no config; pass it with --config")
    try:
        values = _parse_literals(text)
        needed = {
            "model": _without_start_weights(dict(values["model"])),
            "val_dataloader": {"dataset": dict(values["val_dataloader"]["dataset"])},
            "default_scope": SCOPE,
        }
        _check_types(needed)
        return Config(needed, cfg_text=text)
    except (_NotPlain, KeyError, TypeError, ValueError, RecursionError, MemoryError) as error:
        problem = str(error) if isinstance(error, _NotPlain) else "is incomplete or malformed"
        raise UserError(f"{path}: the config inside {problem}; pass one with --config") from error


class _NotPlain(Exception):
    """The text is no plain data; the message completes "the config inside …"."""


def _parse_literals(text: str) -> dict[str, Any]:
    """Evaluate `name = literal` lines; `dict(key=literal)` counts as a literal."""
    if len(text) > LONGEST_TEXT:
        raise _NotPlain(f"is longer than {LONGEST_TEXT} characters")
    try:
        body = _DictCalls().visit(ast.parse(text)).body
    except SyntaxError as error:
        raise _NotPlain("is not valid Python") from error
    values = {}
    for statement in body:
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                values[name] = _literal(name, value)
            case _:
                raise _NotPlain(f"contains code (line {statement.lineno}), which is never run")
    return values


def _literal(name: str, node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError as error:
        raise _NotPlain(f"contains code (in {name!r}), which is never run") from error


class _DictCalls(ast.NodeTransformer):
    """Turn `dict(key=value)`, as mmengine writes configs, into `{'key': value}`."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        named = [keyword.arg for keyword in node.keywords]
        if not (isinstance(node.func, ast.Name) and node.func.id == "dict"):
            return node
        if node.args or None in named:
            return node
        keys: list[ast.expr | None] = [ast.Constant(name) for name in named]
        return ast.Dict(keys, [keyword.value for keyword in node.keywords])


def _without_start_weights(model: Any) -> Any:
    """Drop what would fetch or read other weights: all of them come from this file."""
    if isinstance(model, dict):
        return {
            key: _without_start_weights(value)
            for key, value in model.items()
            if key not in ("init_cfg", "pretrained", "checkpoint_path")
        }
    if isinstance(model, list | tuple):
        return type(model)(map(_without_start_weights, model))
    return model


def _check_types(value: Any) -> None:
    for kind in _types(value):
        if not (isinstance(kind, str) and _is_registered(kind)):
            raise _NotPlain(f"names the unknown type {kind!r}")


def _types(value: Any) -> Iterator[Any]:
    """Yield the value of every `type` and `_scope_` key."""
    if isinstance(value, dict):
        for key, entry in value.items():
            if key == "type":
                yield entry
            elif key == "_scope_" and entry != SCOPE:
                raise _NotPlain(f"names the unknown scope {entry!r}")
            yield from _types(entry)
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from _types(entry)


def _is_registered(name: str) -> bool:
    scope, _, own = name.rpartition(".")
    roots = (MODELS, TRANSFORMS, DATASETS)
    registries = [registry for root in roots for registry in (root, *root.children.values())]
    return any(own in found.module_dict and scope in ("", found.scope) for found in registries)

"""YAML as sheets use it: 1.2's plain values, unique keys, and bounds on size, depth and aliases.

PyYAML reads YAML 1.1, where `0300` is 192, `5:00` is 300, `1_000` is 1000 and `yes` is true. Here
they are text, so that a number or a boolean is refused where one is wanted. Fractions stay text as
well (2e-4 and 0.0002 alike), to be kept as they were written.
"""

import re
from typing import Any

import yaml

DEEPEST = 30
MOST_NODES = 5_000_000
LONGEST_VALUE = 10_000

_PLAIN = (
    ("tag:yaml.org,2002:bool", re.compile(r"true|True|TRUE|false|False|FALSE"), "tTfF"),
    ("tag:yaml.org,2002:int", re.compile(r"[-+]?(0|[1-9][0-9]{0,17})"), "-+0123456789"),
    ("tag:yaml.org,2002:null", re.compile(r"~|null|Null|NULL|"), ["~", "n", "N", ""]),
    ("tag:yaml.org,2002:merge", re.compile(r"<<"), "<"),
)


class YamlError(ValueError):
    """The text is no YAML of a sheet.

    Attributes:
        line: where, from 1.
    """

    def __init__(self, problem: str, line: int) -> None:
        super().__init__(problem)
        self.line = line


class _Loader(yaml.CSafeLoader):
    """A safe loader with YAML 1.2's plain values and unique keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise YamlError("a key is no text", key.start_mark.line + 1)
            if key.value in seen and key.value != "<<":
                raise YamlError(f"duplicate key {key.value[:100]!r}", key.start_mark.line + 1)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in _PLAIN:
    _Loader.add_implicit_resolver(_tag, re.compile(f"(?:{_pattern.pattern})$"), list(_first))


def parse_yaml(text: str) -> tuple[Any, yaml.Node | None]:
    """Return the content of a document and its node, which knows the lines.

    Raises:
        YamlError: it is malformed, too deep or too large, or an alias refers to itself.
    """
    try:
        _check_bounds(text)
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            return (loader.construct_document(node) if node else None), node
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise YamlError(error.problem or "malformed", mark.line + 1 if mark else 1) from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise YamlError("a character that YAML does not allow", line) from error
    except (yaml.YAMLError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise YamlError(f"malformed ({type(error).__name__})", 1) from error
    except YamlError:
        raise
    except ValueError as error:  # an explicit tag such as `!!int` before other text
        raise YamlError(f"a tag does not fit its value ({error})", 1) from error


def _check_bounds(text: str) -> None:
    """Follow the events of the parser, which keep no tree, and count what they would make."""
    sizes: dict[str, int] = {}  # anchor → nodes below it, aliases expanded
    open_nodes: list[tuple[str | None, int]] = []  # anchor and count at its start
    count = 0
    for event in yaml.parse(text, yaml.CSafeLoader):
        line = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent):
            if any(anchor == event.anchor for anchor, _ in open_nodes):
                raise YamlError(f"the alias *{event.anchor[:100]} refers to itself", line)
            count += sizes.get(event.anchor, 1)
        elif isinstance(event, yaml.CollectionStartEvent):
            count += 1
            open_nodes.append((event.anchor, count))
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, start = open_nodes.pop()
            if anchor is not None:
                sizes[anchor] = count - start + 1
        elif isinstance(event, yaml.ScalarEvent):
            count += 1
            if len(event.value) > LONGEST_VALUE:
                raise YamlError(f"a value is longer than {LONGEST_VALUE} characters", line)
        if len(open_nodes) > DEEPEST:
            raise YamlError(f"more than {DEEPEST} levels deep", line)
        if count > MOST_NODES:
            raise YamlError(f"more than {MOST_NODES} values, aliases expanded", line)

"""YAML of a bounded size, and where in it things stand.

A few lines can stand for more values than a machine has memory, by names for parts.
"""

from __future__ import annotations

from typing import Any

import yaml

Place = tuple[str | int, ...]

MOST_VALUES = 10_000  # in a document, those behind an alias counted wherever it stands


def read_yaml(text: str, loader: type[Any]) -> Any:
    """The value of a document. Raises yaml.YAMLError, ValueError, RecursionError."""
    reading = loader(text)
    try:
        node = reading.get_single_node()
        if node is None:
            return None
        if _count(node, {}) > MOST_VALUES:
            raise yaml.YAMLError(f"its aliases stand for more than {MOST_VALUES:,} values")
        return reading.construct_document(node)
    finally:
        reading.dispose()


def yaml_lines(text: str) -> dict[Place, int]:
    """Where the keys and items of a document stand: (key or position, ...) -> line, from 1."""
    found: dict[Place, int] = {}
    seen: set[int] = set()

    def look(node: yaml.Node, place: Place) -> None:
        found.setdefault(place, node.start_mark.line + 1)
        if id(node) in seen:  # an alias, perhaps of what it is in
            return
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                found[*place, str(key.value)] = key.start_mark.line + 1
                look(value, (*place, str(key.value)))
        elif isinstance(node, yaml.SequenceNode):
            for position, item in enumerate(node.value):
                look(item, (*place, position))

    root = yaml.compose(text, yaml.SafeLoader)
    if root is not None:
        look(root, ())
    return found


def yaml_problem(path: object, error: Exception) -> str:
    """What is no YAML in a file, and in which line of it."""
    mark = getattr(error, "problem_mark", None)
    words = " ".join(str(getattr(error, "problem", None) or error).split())
    return f"{path}{f', line {mark.line + 1}' if mark else ''}: not YAML ({words})"


def _count(node: yaml.Node, known: dict[int, int]) -> int:
    """Values in a node. One that contains itself counts as too many."""
    if id(node) not in known:
        known[id(node)] = MOST_VALUES + 1  # while it is counted
        inside = node.value if isinstance(node, yaml.CollectionNode) else ()
        parts = [part for pair in inside for part in (pair if isinstance(pair, tuple) else (pair,))]
        known[id(node)] = 1 + sum(_count(part, known) for part in parts)
    return known[id(node)]

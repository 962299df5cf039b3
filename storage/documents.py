"""YAML of a bounded size: a few lines can stand for more values than a machine has memory, by names for parts."""

from __future__ import annotations

from typing import Any

import yaml

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


def _count(node: yaml.Node, known: dict[int, int]) -> int:
    """Values in a node. One that contains itself counts as too many."""
    if id(node) not in known:
        known[id(node)] = MOST_VALUES + 1  # while it is counted
        inside = node.value if isinstance(node, yaml.CollectionNode) else ()
        parts = [part for pair in inside for part in (pair if isinstance(pair, tuple) else (pair,))]
        known[id(node)] = 1 + sum(_count(part, known) for part in parts)
    return known[id(node)]

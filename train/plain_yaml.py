"""YAML as people mean it: 010 is ten, `no` and 2024-01-15 are texts, true and false are the only truths."""

from __future__ import annotations

import re
from typing import Any

import yaml

from samdeblur.storage.documents import read_yaml

Place = tuple[str | int, ...]


class _Plain(yaml.SafeLoader):
    """YAML's safe loader without octal and sexagesimal numbers, dates, and the other words for true and false."""


_Plain.yaml_implicit_resolvers = {
    letter: [(tag, pattern) for tag, pattern in resolvers if tag.rpartition(":")[2] in ("null", "float", "merge")]
    for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Plain.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(true|false)$", re.IGNORECASE), list("tTfF"))
_Plain.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?[0-9]+$"), list("-+0123456789"))
_Plain.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(str(node.value)))


def plain_yaml(text: str) -> Any:
    """The value of a document. Raises yaml.YAMLError, ValueError."""
    return read_yaml(text, _Plain)


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

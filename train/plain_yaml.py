"""YAML as people mean it: 010 is ten, `no` and 2024-01-15 are texts, true and false are the only truths."""

from __future__ import annotations

import re
from typing import Any

import yaml

from samdeblur.storage.documents import read_yaml


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

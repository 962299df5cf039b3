"""What a setting is: its type, its default, what it may be and what it does, said once.

Values are checked by it, and the table of docs/training.md and the JSON schema are written from it.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import Field, field, fields
from typing import Any, get_args, get_origin, get_type_hints

import yaml


class ConfigError(ValueError):
    """A setting that does not exist or has a value it cannot have."""


def setting(
    default: Any, what: str, *, low: float | None = None, below: float = math.inf, choices: Sequence[str] = ()
) -> Any:
    """A field of settings.

    Args:
        what: what it does, in Markdown, for the table of the docs.
        low, below: the lowest value, and what it must stay below; of each of several.
        choices: what it is one of.
    """
    metadata = {"what": what, "low": low, "below": below, "choices": tuple(choices)}
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def default_of(entry: Field[Any]) -> Any:
    return entry.default_factory() if callable(entry.default_factory) else entry.default


def check(settings: Any) -> None:
    """Raise ConfigError for a value that is out of its range, or none of its choices."""
    for entry in fields(settings):
        name, value, limits = entry.name, getattr(settings, entry.name), entry.metadata
        if limits["choices"] and isinstance(value, str) and value not in limits["choices"]:
            raise unknown(name, value, limits["choices"])
        if limits["low"] is None:
            continue
        low, below = limits["low"], limits["below"]
        if not all(low <= item < below for item in (value if isinstance(value, tuple) else [value])):
            limit = f"at least {low}" if below == math.inf else f"in [{low}, {below})"
            raise ConfigError(f"{name}: must be {limit}, is {value}")


def unknown(name: str, value: str, choices: Sequence[str]) -> ConfigError:
    near = difflib.get_close_matches(value, choices, n=1)
    hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(choices)}"
    return ConfigError(f"{name}: no {value!r}; {hint}")


def of_plain(kind: type, values: Mapping[str, Any]) -> Any:
    """Settings from plain values. Raises ConfigError for unknown names, with the nearest known one, and wrong types."""
    known = {entry.name: entry for entry in fields(kind)}
    strange = [str(name) for name in values if name not in known]
    if strange:
        near = difflib.get_close_matches(strange[0], known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
        raise ConfigError(f"{strange[0]}: no such setting; {hint}")
    types = get_type_hints(kind)
    return kind(**{name: _converted(name, value, types[name]) for name, value in values.items()})


def _converted(name: str, value: Any, kind: Any) -> Any:
    """`value` as a type; integers pass for floats, and so does 1e-3, which YAML reads as text."""
    if get_origin(kind) is tuple:
        items = list(value) if isinstance(value, list | tuple) else [value]
        return tuple(_converted(name, item, get_args(kind)[0]) for item in items)
    if isinstance(value, Mapping) and (mapping := _mapping_in(kind)) is not None:
        if bad := [key for key in value if not isinstance(key, str)]:
            raise ConfigError(f"{name}: {bad[0]!r} is not a name")
        return {key: _converted(f"{name}.{key}", item, get_args(mapping)[1]) for key, item in value.items()}
    if kind is Any:
        return value
    plain = plain_type(kind)
    try:
        if plain is float and not isinstance(value, bool):
            return float(value)
    except (TypeError, ValueError):
        pass
    if plain is None or type(value) is not plain:
        what = "a mapping of names to values" if plain is None else f"of type {plain.__name__}"
        raise ConfigError(f"{name}: {value!r} is not {'a number' if plain is float else what}")
    return value


def _mapping_in(kind: Any) -> Any:
    return next((part for part in (kind, *get_args(kind)) if get_origin(part) is dict), None)


def plain_type(kind: Any) -> type | None:
    """str of str, of a Literal, and of str or a mapping; None where there is only a mapping."""
    if isinstance(kind, type) and get_origin(kind) is None:
        return kind
    if get_origin(kind) is dict:
        return None
    parts = get_args(kind)
    return type(parts[0]) if not isinstance(parts[0], type) else parts[0]


# For people and their editors


def table(kind: type) -> str:
    """Settings as a Markdown table: name, default, what it does."""
    rows = [
        f"| `{entry.name}` | {_shown(default_of(entry))} | {_sentence(entry)} |".replace("  ", " ")
        for entry in fields(kind)
    ]
    return "\n".join(["| | default | |", "|---|---|---|", *rows]) + "\n"


def _sentence(entry: Field[Any]) -> str:
    what, choices = entry.metadata["what"], [f"`{choice}`" for choice in entry.metadata["choices"]]
    return what if any(choice in what for choice in choices) or not choices else f"{what}: {', '.join(choices)}"


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return f"`{value}`" if value else ""
    return yaml.safe_dump(list(value) if isinstance(value, tuple) else value, default_flow_style=True).split("\n")[0]


def schema(kind: type, title: str) -> dict[str, Any]:
    """A JSON schema of YAML files of settings."""
    types = get_type_hints(kind)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": title,
        "type": "object",
        "additionalProperties": False,
        "properties": {entry.name: _schema_of(entry, types[entry.name]) for entry in fields(kind)},
    }


_JSON_TYPES = {int: "integer", float: "number", str: "string", bool: "boolean"}


def _schema_of(entry: Field[Any], kind: Any) -> dict[str, Any]:
    several = get_origin(kind) is tuple
    plain = plain_type(get_args(kind)[0] if several else kind)
    one: dict[str, Any] = {"type": _JSON_TYPES[plain]} if plain is not None else {"type": "object"}
    limits = entry.metadata
    if limits["choices"]:
        one["enum"] = list(limits["choices"])
    if limits["low"] is not None:
        one["minimum"] = limits["low"]
        if limits["below"] < math.inf:
            one["exclusiveMaximum"] = limits["below"]
    found = {"anyOf": [one, {"type": "array", "items": one}]} if several else one
    if plain is not None and (mapping := _mapping_in(kind)) is not None:
        values = _JSON_TYPES.get(get_args(mapping)[1])
        named = {"propertyNames": {"enum": list(limits["choices"])}} if limits["choices"] else {}
        found = {"anyOf": [one, {"type": "object", "additionalProperties": {"type": values}, **named}]}
    default = default_of(entry)
    plain_default = list(default) if isinstance(default, tuple) else default
    return found | {"description": limits["what"].replace("`", ""), "default": plain_default}

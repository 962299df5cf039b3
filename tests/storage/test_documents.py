"""YAML that stands for more than it says."""

from __future__ import annotations

import pytest
import yaml

from samdeblur.storage.documents import MOST_VALUES, read_yaml


def bomb(levels, within="[{}]"):
    """Ten of the level below, at each level: 10**levels values in some hundred letters."""
    lines = ["- &a0 [" + ",".join("1" * 10) + "]"]
    lines += [f"- &a{n} [" + ",".join([f"*a{n - 1}"] * 10) + "]" for n in range(1, levels)]
    return "value:\n" + "\n".join(lines)


@pytest.mark.parametrize("loader", [yaml.SafeLoader, yaml.BaseLoader])
@pytest.mark.parametrize(
    "text",
    [
        bomb(4),
        bomb(20),
        "value: &a [*a]",
        "value: &a {b: {c: *a}}",
        "a: &a {" + ",".join(f"k{n}: 1" for n in range(100)) + "}\n" + "\n".join(f"b{n}: *a" for n in range(100)),
    ],
    ids=["just too many", "more than memory", "itself", "itself in a mapping", "mappings"],
)
def test_aliases_that_stand_for_too_much_are_refused_before_anything_is_built(text, loader):
    with pytest.raises(yaml.YAMLError, match=f"aliases stand for more than {MOST_VALUES:,} values"):
        read_yaml(text, loader)


@pytest.mark.parametrize(
    "text",
    ["", "a: 1", "a: &a [1, 2]\nb: *a\nc: *a", bomb(3), "<<: &m {x: 1}\ny: {<<: *m}", "[1, {a: [b]}]"],
)
def test_others_are_read_as_before(text):
    assert read_yaml(text, yaml.SafeLoader) == yaml.safe_load(text)

"""YAML as people mean it."""

from __future__ import annotations

import pytest

from samdeblur.train.plain_yaml import plain_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("010", 10),
        ("007", 7),
        ("-3", -3),
        ("0x1f", "0x1f"),
        ("no", "no"),
        ("on", "on"),
        ("true", True),
        ("False", False),
        ("2024-01-15", "2024-01-15"),
        ("2024_01_15", "2024_01_15"),
        ("1:30", "1:30"),
        ("1.5", 1.5),
        ("1.0e-3", 1e-3),
        ("null", None),
        ("[1, 2]", [1, 2]),
    ],
)
def test_values_are_what_a_person_means(text, value):
    found = plain_yaml(text)
    assert (found, type(found)) == (value, type(value))

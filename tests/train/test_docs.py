"""docs/training.md says what the code does."""

from __future__ import annotations

import re
from dataclasses import fields

import pytest
from places import ROOT

from samdeblur.cli.schemas import as_text, job_schema, train_schema, with_table
from samdeblur.train import TrainConfig
from samdeblur.train.config import PRESETS
from samdeblur.train.resuming import FREE
from samdeblur.train.settings import table

TEXT = (ROOT / "docs/training.md").read_text()


def test_the_table_of_settings_is_that_of_the_code():
    assert with_table(TEXT) == TEXT, "run python -m samdeblur.cli.schemas"
    rows = re.findall(r"^\| `(\w+)` \|", table(TrainConfig), re.MULTILINE)
    assert rows == [field.name for field in fields(TrainConfig)]


@pytest.mark.parametrize(("name", "made"), [("train", train_schema), ("job", job_schema)])
def test_schemas_are_those_of_the_code(name, made):
    path = ROOT / f"docs/schemas/{name}.schema.json"
    assert path.read_text() == as_text(made()), "run python -m samdeblur.cli.schemas"


def test_presets_are_named():
    names = {
        "gopro-METHOD-released" if path.stem.endswith("-released") else path.stem for path in PRESETS.glob("*.yaml")
    }
    assert all(f"`{name}`" in TEXT for name in names)


def test_what_may_change_is_named():
    (sentence,) = re.findall(r"You may resume a run with another (.*?);", TEXT, re.DOTALL)
    assert set(re.findall(r"`(\w+)`", sentence)) == FREE

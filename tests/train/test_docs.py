"""docs/training.md says what the code does."""

from __future__ import annotations

import re
from dataclasses import fields

import pytest
import yaml
from places import ROOT

from samdeblur.train import TrainConfig
from samdeblur.train.config import PRESETS
from samdeblur.train.resuming import FREE

TEXT = (ROOT / "docs/training.md").read_text()


def settings():
    """(names, default) of each row of the table of settings."""
    table = TEXT.split("## Settings")[1].split("\n## ")[0]
    rows = [line.split("|")[1:3] for line in table.splitlines() if line.startswith("| `")]
    return [(re.findall(r"`(\w+)`", names), default.strip().strip("`")) for names, default in rows]


def test_every_setting_is_described_once():
    assert sorted(name for names, _ in settings() for name in names) == sorted(
        field.name for field in fields(TrainConfig)
    )


@pytest.mark.parametrize(("names", "default"), settings(), ids=str)
def test_defaults_are_those_of_the_code(names, default):
    stated = yaml.safe_load(f"[{default}]")
    stated = stated if len(names) > 1 else [stated[0] if stated else ""]
    values = {name: getattr(TrainConfig(), name) for name in names}
    assert TrainConfig.of(dict(zip(names, stated, strict=True))) == TrainConfig(), (values, stated)


def test_presets_are_named():
    names = {
        "gopro-METHOD-released" if path.stem.endswith("-released") else path.stem for path in PRESETS.glob("*.yaml")
    }
    assert all(f"`{name}`" in TEXT for name in names)


def test_what_may_change_is_named():
    (sentence,) = re.findall(r"A run may go on with other (.*?);", TEXT, re.DOTALL)
    assert set(re.findall(r"`(\w+)`", sentence)) == FREE

"""A dataset whose shape only its user knows: --layout package.module:function."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from samdeblur.pipeline.sources.base import SourceError
from samdeblur.pipeline.sources.opening import open_source

MODULE = """
import csv
from pathlib import Path

def table(folder, split):
    with open(folder / f"{split}.csv") as rows:
        return {row["name"]: (row["blurred"], folder / row["sharp"]) for row in csv.DictReader(rows)}

def a_list(folder, split):
    return [("a", "b")]

def of_numbers(folder, split):
    return {1: ("raw/1.png", "raw/2.png")}

def of_one(folder, split):
    return {"one": ("raw/1.png",)}

def of_text(folder, split):
    return {"one": "raw/1.png"}

def fails(folder, split):
    raise KeyError("no\\nscene")

a_name = "raw"
"""


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "odd_layouts.py").write_text(MODULE)
    (tmp_path / "code" / "broken_layouts.py").write_text("import torch.no_such_part\n")
    monkeypatch.syspath_prepend(str(tmp_path / "code"))
    root = tmp_path / "lab"
    (root / "raw").mkdir(parents=True)
    for number in range(4):
        Image.fromarray(np.full((8, 9, 3), number, np.uint8)).save(root / "raw" / f"{number}.png")
    (root / "train.csv").write_text("name,blurred,sharp\nz,raw/0.png,raw/1.png\na,raw/2.png,raw/3.png\n")
    return root


def test_pairs_are_those_of_the_function(dataset):
    source = open_source(str(dataset), "train", "odd_layouts:table")
    assert list(source.keys) == ["a", "z"]
    assert source.dataset == "lab"
    pair = source.read("z")
    assert (pair.blurred.max(), pair.sharp.max()) == (0, 1)


def test_files_that_are_not_there_are_named(dataset):
    with open(dataset / "train.csv", "a") as rows:
        rows.write("gone,raw/8.png,raw/1.png\n")
    with pytest.raises(SourceError, match=r"1 image without a counterpart: gone \(no blurred\)"):
        open_source(str(dataset), "train", "odd_layouts:table")
    source = open_source(str(dataset), "train", "odd_layouts:table", skip_unpaired=True)
    assert list(source.keys) == ["a", "z"]


@pytest.mark.parametrize(
    ("layout", "words"),
    [
        ("odd_layouts:fails", "KeyError: 'no.*scene'"),
        ("odd_layouts:a_list", "gave a list, not a mapping"),
        ("odd_layouts:of_numbers", "the key 1 is not a name"),
        ("odd_layouts:of_one", "one: .* is not two paths"),
        ("odd_layouts:of_text", "one: .* is not two paths"),
        ("odd_layouts:a_name", "a str, no function"),
        ("odd_layouts:nothing", "no 'nothing' in it"),
        ("odd_layouts:", "layout odd_layouts:"),
        (":table", "layout :table"),
        ("no_such_module:table", "no_such_module'; install it, or put its folder on PYTHONPATH"),
        ("broken_layouts:table", "needs the module 'torch.no_such_part', which is not installed"),
        ("lab", "or name a function as package.module:function"),
    ],
)
def test_what_is_wrong_with_it_is_said_in_a_line(dataset, layout, words):
    with pytest.raises(SourceError, match=words) as raised:
        open_source(str(dataset), "train", layout)
    assert "\n" not in str(raised.value)

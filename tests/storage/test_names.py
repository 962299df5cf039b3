"""One image under several names, and file names made of names."""

from __future__ import annotations

import unicodedata

import hypothesis
import pytest
from hypothesis import strategies as st

from samdeblur.storage.names import FILE_NAME_BYTES, Names, file_name, file_path, select

APART = unicodedata.normalize("NFD", "été")


@pytest.mark.parametrize(
    ("names", "asked", "found"),
    [
        (["a", "b"], "a", "a"),
        (["été"], APART, "été"),
        ([APART], "été", APART),
        (["0001"], "0001.png", "0001"),
        (["0001.png"], "0001", "0001.png"),
        (["0001.png"], "0001.JPG", "0001.png"),
        ([f"{APART}.png"], "été", f"{APART}.png"),
        (["a.png", "a.jpg"], "a", None),  # it does not tell which
        (["a.png", "a.jpg"], "a.jpg", "a.jpg"),
        (["a.b"], "a", None),  # .b is no suffix of a picture
    ],
)
def test_a_name_is_found_however_it_is_written(names, asked, found):
    assert Names(names).find(asked) == found


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("shot[1]", ["shot[1]"]),  # not shot1
        ("shot[1].png", ["shot[1]"]),
        ("shot?", ["shot1", "shot2"]),
        ("shot*.png", ["shot[1]", "shot1", "shot2"]),
        ("n*", ["night/a.png"]),
        ("night/a", ["night/a.png"]),
        ("*.jpg", ["shot[1]", "shot1", "shot2"]),  # those whose suffix is not known
        ("SHOT*", []),
    ],
)
def test_an_exact_name_goes_before_a_pattern(pattern, found):
    assert select(["shot[1]", "shot1", "shot2", "night/a.png"], pattern) == found


@pytest.mark.parametrize(
    "key", ["夜" * 90, "x" * 248, "a/" * 150 + "b", "..", "", 'a:b*c?"<>|', "100%", "a#b", ".hidden"]
)
def test_file_names_are_short_plain_and_read_well(key):
    name = file_name(key, ".png")
    assert len(name.encode()) <= FILE_NAME_BYTES
    assert not name.startswith(".")
    assert not set(name) & set('/\\:*?"<>|#%')
    assert name.endswith(".png")


def test_plain_keys_stay_as_they_are():
    assert file_name("GOPR0372_07_00/000047") == "GOPR0372_07_00__000047"
    assert file_path("GOPR0372_07_00/000047", ".png") == "GOPR0372_07_00/000047.png"
    assert file_path("nuit/夜 1", ".png") == "nuit/夜 1.png"
    assert all(len(part.encode()) <= FILE_NAME_BYTES for part in file_path("夜" * 90 + "/" + "y" * 300).split("/"))


@hypothesis.given(st.lists(st.text(alphabet="ab_/.%:é夜", max_size=200), unique_by=str.casefold, max_size=8))
def test_different_keys_have_different_file_names(keys):
    assert len({file_name(key) for key in keys}) == len(keys)

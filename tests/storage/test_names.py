"""One image under several names, and file names made of names."""

from __future__ import annotations

import unicodedata

import hypothesis
import pytest
from hypothesis import strategies as st

from samdeblur.storage.names import FILE_NAME_BYTES, Names, bounded, file_name, file_path, select, shared_names

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
        (["a.b"], "a", None),  # .b is no suffix of an image
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
    "key", ["夜" * 90, "x" * 248, "a/" * 150 + "b", "..", "", 'a:b*c?"<>|', "100%", "a#b", ".hidden", "torn\udcff"]
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


@pytest.mark.parametrize("make", [file_name, file_path])
def test_one_name_however_it_is_written_is_one_file(make):
    assert make(f"{APART}/{APART}#") == make("été/été#")
    assert make(f"a/{APART}") == make("a/été")


def test_a_path_never_leads_elsewhere():
    for key in ("../../etc/passwd", "/etc", "a//b", "a/./b", "", "a/.."):
        parts = file_path(key, ".png").split("/")
        assert all(part and not part.startswith(".") for part in parts)
        assert len(parts) == len(key.split("/"))


@hypothesis.given(st.lists(st.text(alphabet="a夜\udc80", max_size=90), unique=True), st.integers(20, 60))
def test_bounded_names_stay_apart(names, room):
    made = [bounded(name, room) for name in names]
    assert len(set(made)) == len(names)
    assert all(len(name.encode(errors="surrogatepass")) <= room for name in made)
    assert all(one == name for one, name in zip(made, names, strict=True) if len(name) * 3 <= room)


@pytest.mark.parametrize(
    ("sets", "shared"),
    [
        ([["été", "b"], ["b", APART]], [["été", "b"], ["b", "été"]]),
        ([["0001.png"], ["0001"], ["0001.JPG"]], [["0001.png"], ["0001.png"], ["0001.png"]]),
        ([["0001"], ["0001.png", "0001"]], [["0001"], ["0001.png", "0001"]]),  # two images of one set
        ([["0001"], ["0001.png", "0001.jpg"]], [["0001"], ["0001.png", "0001.jpg"]]),  # it does not tell which
        ([["b.png"], [f"{APART}.png", "b"], ["été"]], [["b.png"], [f"{APART}.png", "b.png"], [f"{APART}.png"]]),
    ],
)  # fmt: skip
def test_sets_share_the_names_of_the_first_that_has_an_image(sets, shared):
    assert [list(names.values()) for names in shared_names(sets)] == shared
    assert [list(names) for names in shared_names(sets)] == sets


@hypothesis.given(st.lists(st.text(alphabet="ab_/.%:é夜", max_size=200), unique_by=str.casefold, max_size=8))
def test_different_keys_have_different_file_names(keys):
    assert len({file_name(key) for key in keys}) == len(keys)

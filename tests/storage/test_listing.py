"""Which files count, in every folder that is listed."""

from __future__ import annotations

import os
import unicodedata

import pytest

from samdeblur.storage.listing import ListingError, files_in, folders_in, image_files, is_empty

CLUTTER = [".DS_Store", "._a.png", ".ipynb_checkpoints/a-checkpoint.png", "__MACOSX/a.png", "Thumbs.db", "desktop.ini",
           "@eaDir/a.png/SYNOPHOTO_THUMB.jpg", "lost+found/a.png", "$RECYCLE.BIN/a.png"]  # fmt: skip


def fill(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return folder


def test_what_systems_and_notebooks_leave_behind_does_not_count(tmp_path):
    assert is_empty(fill(tmp_path, *CLUTTER))
    assert list(files_in(tmp_path)) == []
    assert folders_in(tmp_path) == []
    assert list(image_files(fill(tmp_path, "night/b.PNG", "night/__MACOSX/b.png"))) == ["night/b"]
    assert [folder.name for folder in folders_in(tmp_path)] == ["night"]
    assert not is_empty(tmp_path)


@pytest.mark.parametrize("suffix", [".jfif", ".JPE", ".ppm", ".pgm", ".gif", ".tiff"])
def test_less_usual_suffixes_are_images(tmp_path, suffix):
    assert list(image_files(fill(tmp_path, f"a{suffix}", "b.txt", "c"))) == ["a"]


def test_a_form_that_is_not_read_is_listed_and_gives_way(tmp_path):
    fill(tmp_path, "a.avif", "b.exr", "b.png", "c.png", "c.jxl")
    assert {key: path.name for key, path in image_files(tmp_path).items()} == {
        "a": "a.avif", "b": "b.png", "c": "c.png",
    }  # fmt: skip


def test_names_are_in_nfc(tmp_path):
    apart = unicodedata.normalize("NFD", "été/é")
    (key, path) = next(iter(image_files(fill(tmp_path, f"{apart}.png")).items()))
    assert key == unicodedata.normalize("NFC", "été/é") != apart
    assert path.is_file()


@pytest.mark.parametrize("names", [("a.png", "a.jpg"), ("\u00e9.png", "e\u0301.png")], ids=["suffix", "Unicode"])
def test_two_files_of_one_name_are_refused(tmp_path, names):
    with pytest.raises(ListingError, match="have the same name; keep one of them there"):
        image_files(fill(tmp_path, *names))


def test_a_name_that_is_not_utf8_is_read_as_of_an_old_archive(tmp_path):
    for side in (b"/\xe9t\xe9.png", b"/plain.png"):
        with open(os.fsencode(tmp_path) + side, "wb"):
            pass
    found = image_files(tmp_path)
    assert list(found) == ["plain", "été"]
    assert found["été"].is_file()

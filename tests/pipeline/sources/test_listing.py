"""Which files of a folder are listed, and what is said of those that do not match."""

from __future__ import annotations

import os

import pytest

from samdeblur.pipeline import BadImage, SourceError, open_source


def test_folders_that_link_to_each_other_are_listed_once_in_each_other(tmp_path, write_pairs):
    write_pairs(tmp_path, {"one/a": (8, 8), "two/b": (8, 8)})
    for side in ("blur", "sharp"):
        (tmp_path / side / "one/other").symlink_to("../two")
        (tmp_path / side / "two/other").symlink_to("../one")
    assert open_source(str(tmp_path), "test").keys == ["one/a", "one/other/b", "two/b", "two/other/a"]


def test_a_link_to_nothing_is_a_bad_image(tmp_path, write_pairs):
    write_pairs(tmp_path, {"a": (8, 8), "b": (8, 8)})
    (tmp_path / "blur/a.png").unlink()
    (tmp_path / "blur/a.png").symlink_to("nothing.png")
    source = open_source(str(tmp_path), "test")
    assert source.keys == ["a", "b"]
    with pytest.raises(BadImage, match=r"blur/a\.png: No such file"):
        source.read("a")


def test_hidden_files_and_folders_are_left_out(tmp_path, write_pairs, save, random_image):
    write_pairs(tmp_path, {"a": (8, 8)})
    save(tmp_path / "blur/._a.png", random_image(0, 8, 8))
    save(tmp_path / "blur/.thumbnails/a.png", random_image(0, 8, 8))
    assert open_source(str(tmp_path), "test").keys == ["a"]


def test_names_that_are_not_utf8_are_read_as_of_an_old_archive(tmp_path, write_pairs):
    write_pairs(tmp_path / "set", {"a": (8, 8)})
    for side in ("blur", "sharp"):
        os.rename(tmp_path / f"set/{side}/a.png", os.fsencode(tmp_path / "set" / side) + b"/\xff.png")
    os.rename(tmp_path / "set", os.fsencode(tmp_path) + b"/\xe9")
    source = open_source(os.fsdecode(os.fsencode(tmp_path) + b"/\xe9"), "test")
    assert (source.dataset, source.keys) == ("é", ["ÿ"])
    assert source.read("ÿ").blurred.shape == (8, 8, 3)


def test_a_long_note_names_eight(tmp_path, write_pairs):
    write_pairs(tmp_path, {f"{number:04d}": (2, 2) for number in range(12)})
    for number in range(11):
        (tmp_path / f"sharp/{number:04d}.png").unlink()
    (note,) = open_source(str(tmp_path), "test", skip_unpaired=True).notes
    assert ": 11 images left out without a counterpart: 0000 (no sharp), 0001" in note
    assert note.endswith("0007 (no sharp) and 3 more")


def test_nothing_left_is_refused(tmp_path, save, random_image):
    save(tmp_path / "blur/a.png", random_image(0, 8, 8))
    save(tmp_path / "sharp/b.png", random_image(0, 8, 8))
    with pytest.raises(SourceError, match=r"no pair is complete, 2 images .* a \(no sharp\), b \(no blurred\)"):
        open_source(str(tmp_path), "test", skip_unpaired=True)


def test_forms_that_are_not_read_are_counted_and_named(tmp_path, write_pairs):
    write_pairs(tmp_path, {"a": (8, 8), "b": (8, 8), "c": (8, 8)})
    (tmp_path / "sharp/b.png").rename(tmp_path / "sharp/b.avif")
    for side in ("blur", "sharp"):
        (tmp_path / side / "c.png").rename(tmp_path / side / "c.jp2")
    source = open_source(str(tmp_path), "test")
    assert source.keys == ["a"]
    assert source.notes[0].endswith(
        "2 images left out in formats that are not read: 1 .avif, 2 .jp2; convert them to PNG"
    )
    (tmp_path / "blur/a.png").rename(tmp_path / "blur/a.heic")
    with pytest.raises(SourceError, match=r"no pair is complete, 3 images .* 1 \.avif, 1 \.heic, 2 \.jp2; convert"):
        open_source(str(tmp_path), "test")


def test_pairs_are_matched_in_either_form_of_unicode(tmp_path, write_pairs):
    write_pairs(tmp_path, {"nuit-\u00e9t\u00e9": (8, 8)})
    (tmp_path / "sharp/nuit-\u00e9t\u00e9.png").rename(tmp_path / "sharp/nuit-e\u0301te\u0301.png")
    source = open_source(str(tmp_path), "test")
    assert source.keys == ["nuit-\u00e9t\u00e9"]
    source.read("nuit-\u00e9t\u00e9")

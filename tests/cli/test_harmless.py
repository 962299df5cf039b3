"""Names that a terminal would act on."""

from __future__ import annotations

import shutil

import pytest

NAME = "e\x1b[31mred\x07\x9b2J\u202ex"


@pytest.fixture
def odd(store, pairs, prep_run, tmp_path):
    for side in ("blur", "sharp"):
        shutil.copy(pairs / side / "000.png", pairs / side / f"{NAME}.png")
    (pairs / "blur" / "001.png").write_bytes(b"")
    other = tmp_path / "odd.zarr"
    assert prep_run(pairs, other, "--dataset", NAME).code == 3
    return other


def acted_on(text):
    return [letter for letter in text if not letter.isprintable() and letter not in "\n\t\r"]


def test_nothing_that_is_printed_does_anything_to_a_terminal(samdeblur, odd, store, pairs, tmp_path, monkeypatch):
    monkeypatch.setattr("click.utils.should_strip_ansi", lambda *_: False)  # as on a terminal
    for arguments in (
        ["status", odd],
        ["info", odd],
        ["verify", odd],
        ["diff", odd, store],
        ["run", pairs, odd, "--split", "test", "--segmenter", "superpixels", "--dataset", NAME, "--block-size", 2],
        ["export", odd, tmp_path / "share.zip", "--licence", NAME],
        ["status", tmp_path / NAME],
    ):
        ended = samdeblur("prep", *arguments)
        assert acted_on(ended.out + ended.err) == [], arguments
    assert "red" in samdeblur("prep", "status", odd).out

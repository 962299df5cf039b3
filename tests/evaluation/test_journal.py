from __future__ import annotations

import math

import pytest

from samdeblur.evaluation.journal import Journal
from samdeblur.evaluation.results import Score

IDENTITY = {"weights": "ab", "tile": None}
SCORES = [
    Score("a", {"psnr": 1 / 3, "psnr_blurred": math.inf}),
    Score("é/ü", {"psnr": 25.0, "psnr_blurred": 20.0}, ("range",), "input"),
    Score("c"),
]


@pytest.fixture
def written(tmp_path):
    journal = Journal(tmp_path, "GoPro test", IDENTITY)
    for number, score in enumerate(SCORES):
        journal.add(score, number + 0.5)
    return tmp_path


def test_what_was_added_is_read_again_bit_for_bit(written):
    scores, seconds = Journal(written, "GoPro test", IDENTITY).read()
    assert list(scores.values()) == SCORES
    assert seconds == 4.5


def test_processes_read_what_all_of_them_wrote(written):
    other = Journal(written, "GoPro test", IDENTITY, rank=3)
    other.add(Score("d"), 1.0)
    assert list(other.read()[0]) == list(Journal(written, "GoPro test", IDENTITY).read()[0]) == ["a", "é/ü", "c", "d"]


def test_what_was_scored_otherwise_is_not_read_and_written_over(written):
    other = Journal(written, "GoPro test", IDENTITY | {"tile": 512})
    assert other.read() == ({}, 0)
    other.add(Score("z"), 1.0)
    assert list(other.read()[0]) == ["z"]
    assert Journal(written, "GoPro test", IDENTITY).read() == ({}, 0)


def test_sets_do_not_meet(written):
    assert Journal(written, "GoPro", IDENTITY).read() == ({}, 0)
    assert Journal(written, "GoPro test/..", IDENTITY).read() == ({}, 0)


def test_cut_off_anywhere_whole_lines_count_and_writing_goes_on(written):
    (path,) = (written / "journal").iterdir()
    whole = path.read_bytes()
    lines = [0, *(at + 1 for at, byte in enumerate(whole) if byte == ord("\n"))]
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        left = sum(at <= cut for at in lines[2:])
        journal = Journal(written, "GoPro test", IDENTITY)
        assert list(journal.read()[0].values()) == SCORES[:left], cut
        journal.add(Score("new"), 0.0)
        assert list(journal.read()[0].values()) == [*SCORES[:left], Score("new")], cut

from __future__ import annotations

import math

import pytest

from samdeblur.evaluation.journal import Entry, Journal
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
        journal.add(Entry(score, number + 0.5))
    return tmp_path


def test_what_was_added_is_read_again_bit_for_bit(written):
    entries = Journal(written, "GoPro test", IDENTITY).read()
    assert list(entries.values()) == [Entry(score, number + 0.5) for number, score in enumerate(SCORES)]


def test_processes_read_what_all_of_them_wrote(written):
    other = Journal(written, "GoPro test", IDENTITY, rank=3)
    other.add(Entry(Score("d"), 1.0))
    assert list(other.read()) == list(Journal(written, "GoPro test", IDENTITY).read()) == ["a", "é/ü", "c", "d"]


def test_what_was_scored_otherwise_is_not_read_and_written_over(written):
    other = Journal(written, "GoPro test", IDENTITY | {"tile": 512})
    assert other.read() == {}
    other.add(Entry(Score("z"), 1.0))
    assert list(other.read()) == ["z"]
    assert Journal(written, "GoPro test", IDENTITY).read() == {}


def test_sets_do_not_meet(written):
    assert Journal(written, "GoPro", IDENTITY).read() == {}
    assert Journal(written, "GoPro test/..", IDENTITY).read() == {}


def test_cut_off_anywhere_whole_lines_count_and_writing_goes_on(written):
    (path,) = (written / "journal").iterdir()
    whole = path.read_bytes()
    lines = [0, *(at + 1 for at, byte in enumerate(whole) if byte == ord("\n"))]
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        left = sum(at <= cut for at in lines[2:])
        journal = Journal(written, "GoPro test", IDENTITY)
        assert [entry.score for entry in journal.read().values()] == SCORES[:left], cut
        journal.add(Entry(Score("new"), 0.0))
        assert [entry.score for entry in journal.read().values()] == [*SCORES[:left], Score("new")], cut


def test_of_an_image_the_last_line_counts_whichever_process_wrote_it(tmp_path):
    first, second = (Journal(tmp_path, "toy", IDENTITY, rank) for rank in (1, 0))
    first.add(Entry(Score("a", {"psnr": 1.0}), 1.0, content="old"))
    second.read()
    second.add(Entry(Score("a", {"psnr": 2.0}), 1.0, content="new"))  # in the file that is read before the other
    assert Journal(tmp_path, "toy", IDENTITY).read()["a"].score.metrics == {"psnr": 2.0}
    assert Journal(tmp_path, "toy", IDENTITY).read(lambda entry: entry.content == "old") == {}


def test_lines_of_another_form_are_passed_over(written):
    (path,) = (written / "journal").iterdir()
    with open(path, "ab") as file:
        file.write(
            b'{"key": "odd"}\n[]\n7\n{"key": 3, "seconds": 0, "stamp": "", "content": "", "saved": "", "pass": 9}\n'
        )
    assert [entry.score for entry in Journal(written, "GoPro test", IDENTITY).read().values()] == SCORES

"""Bars on terminals of several widths, and from the first second."""

from __future__ import annotations

import re

import pytest
from tqdm.utils import disp_len

from samdeblur.cli.bars import LEAST, Bar

FULL = {"loss": "-22.330", "val": "27.31 dB", "crops/s": "1000.1", "waiting": "50%"}


@pytest.fixture
def bar():
    """(columns, **options) -> a bar on a terminal of that width, which has not begun."""
    made = []

    def make(columns, **options):
        one = Bar(**options)
        one._first.cancel()
        one.dynamic_ncols = lambda file: (columns, 24)
        made.append(one)
        return one

    yield make
    for one in made:
        one.close()


def moves(line):
    return disp_len(re.search(r"%\|(.*?)\|", line)[1])


@pytest.mark.parametrize("columns", [60, 80, 100, 132, 200])
@pytest.mark.parametrize("name", ["none on cpu", "map-dropout on a GPU of a long name", "夜" * 40])
@pytest.mark.parametrize("total", [8, 400_000])
def test_a_bar_of_training_fills_its_line_and_moves(bar, columns, name, total):
    one = bar(columns, total=total, unit="step", desc=name)
    one.set_postfix(FULL, refresh=False)
    for step in (0, total // 2, total):
        one.n = step
        line = str(one)
        assert columns - 1 <= disp_len(line) <= columns
        assert moves(line) >= LEAST - 1  # a letter may be two columns wide
        assert f"{step}/{total}" in line
    if columns >= 80:
        assert "loss=-22.330" in line
    if columns == 200:
        assert "waiting=50%" in line


def test_a_bar_says_that_nothing_is_done_yet_and_leaves_nothing_of_what_is_refused_at_once(bar, capsys):
    one = bar(80, total=8, unit="img", desc="sample test")
    assert capsys.readouterr().err == ""
    one.start_t = one.last_print_t = one.start_t - 2  # a while later
    one._begin()
    assert "0/8" in capsys.readouterr().err
    one._begin()  # once
    assert capsys.readouterr().err == ""
    bar(80, total=8).close()
    assert capsys.readouterr().err == ""


def test_a_bar_without_a_total_or_that_is_off_is_one_too(bar, capsys):
    assert "0img" in str(bar(80, unit="img", desc="import"))
    off = Bar(total=3, disable=True)
    off.close()
    assert [*Bar(range(3), disable=True)] == [0, 1, 2]
    assert capsys.readouterr().err == ""

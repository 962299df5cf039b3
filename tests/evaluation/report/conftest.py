"""A browser, and reports to show in it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from browser import Browser
from toy_reports import BLUE, fill, results, score

from samdeblur.evaluation.report.write import write_comparison, write_report
from samdeblur.evaluation.tables.cells import Table


@pytest.fixture(scope="module")
def window():
    with Browser(1400, 900) as opened:
        yield opened


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    made = results()
    return write_report(fill(tmp_path_factory.mktemp("report"), made), made)


@pytest.fixture
def show(window):
    """show(path, hash="", **size) -> the browser with that page; nothing may have gone wrong in the end."""
    window.problems.clear()
    window.requests.clear()

    def show(path, place="", **look):
        window.show(**({"width": 1400, "height": 900} | look))
        window.open("about:blank")
        window.open(f"{path.as_uri()}{place}")
        return window

    yield show
    assert window.problems == []


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    folder = tmp_path_factory.mktemp("comparison")
    other = (score("good/1", 20.0, 14.0), score("fallen/2", 25.0, 26.0), score("own", 20.0, 20.5))
    runs = [results("none"), results("map", other)]
    folders = [fill(folder / "none", runs[0]), fill(folder / "map", runs[1], kept=("good/1",), colour=BLUE)]
    sets = runs[1].sets + results(split="ood", scores=(score("x", 20.0, 21.0),)).sets
    runs[1] = replace(runs[1], sets=sets)
    tables = [Table("Table 1", ["network", "PSNR"], [["none", "1.00"], ["map", "2.00"]], frozenset({(1, 1)}))]
    return write_comparison(folder, runs, folders, {}, tables)

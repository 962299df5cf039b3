"""Reports of several networks, in a browser."""

from __future__ import annotations

from report_pages import (
    choose,
    colour_at,
    images_are_there,
    in_browser,
    like,
    listed,
    open_viewer,
    panes,
    text,
    tick,
    visible,
)
from toy_reports import BLUE, SET


@in_browser
def test_networks_are_compared_image_by_image(show, comparison):
    window = show(comparison)
    assert text(window, "td.best") == "2.00"
    assert listed(window)[:3] == ["spoiled/1", "good/1", "fallen/2"]  # by the network that lost most
    assert visible(window, "#network")
    assert window.run("document.querySelectorAll('.legend span').length") == 2
    choose(window, "sort", "apart")
    assert listed(window)[:2] == ["good/1", "fallen/2"]
    choose(window, "network", "1")
    assert sorted(listed(window)) == ["fallen/2", "good/1", "own"]
    assert window.run("document.querySelectorAll('circle').length") == 3
    tick(window, "collapsed")
    assert listed(window) == ["good/1"]
    window.press("j", "Enter")
    window.until("!document.getElementById('viewer').hidden")
    images_are_there(window)
    assert panes(window) == ["blurred", "masks", "none", "map", "sharp", "error"]
    stage = ".pane[data-name=error] .stage"
    assert window.run("document.getElementById('judged').selectedOptions[0].text") == "map"
    assert like(colour_at(window, *window.place(stage, 0.3)), (0, 0, 0))  # the result of map is the sharp image there
    window.press("n")
    images_are_there(window)
    assert not like(colour_at(window, *window.place(stage, 0.3)), (0, 0, 0))
    window.press("s")
    assert window.run("[...document.querySelectorAll('.end')].map(end => end.textContent)") == ["blurred", "none"]
    window.press("n")
    assert window.run("[...document.querySelectorAll('.end')].map(end => end.textContent)") == ["blurred", "map"]


@in_browser
def test_a_result_that_was_not_kept_has_its_thumbnail_beside_the_others(show, comparison):
    window = open_viewer(show, comparison, "fallen/2")
    assert panes(window) == ["blurred", "masks", "none", "map", "sharp", "error"]
    assert "thumbnail" in text(window, ".pane[data-name=map] figcaption")
    assert like(colour_at(window, *window.place(".pane[data-name=map] .stage")), BLUE)
    window.press("n", "n")


@in_browser
def test_sets_are_chosen(show, comparison):
    window = show(comparison)
    names = window.run("[...document.querySelectorAll('#set option')].map(option => option.text)")
    assert names == [SET, "toy ood (masks 11111111)"]
    choose(window, "set", "1")
    assert listed(window) == ["x"]
    window.press("j", "Enter")
    window.until("!document.getElementById('viewer').hidden")
    assert window.run("location.hash") == "#1/x"

"""The list of images, figures and examples of a report, in a browser."""

from __future__ import annotations

import re
import shutil

import pytest
from report_pages import choose, colour_at, images_are_there, in_browser, listed, panes, text, tick, visible
from toy_reports import HOSTILE, WORST_FIRST, fill, fill_with_strips, results, score

from samdeblur.evaluation.report.write import write_report


@in_browser
def test_the_list_begins_with_the_worst_and_loads_nothing_else(show, report):
    window = show(report)
    assert listed(window) == WORST_FIRST
    assert [address for address in window.requests if not address.startswith("data:")] == [report.as_uri()]
    window.until("[...document.querySelectorAll('.card img')].every(p => p.src && p.complete && p.naturalWidth)")
    assert text(window, "#count") == "9 of 9"
    assert [words.split() for words in window.run("[...document.querySelectorAll('.card')].map(c => c.innerText)")][1][
        :6
    ] == ["-5.00", "dB", "25.00", "\u2192", "20.00", "fallen/2"]
    assert window.run(
        "[...document.querySelectorAll('tbody td')].some(cell => cell.textContent === '22.22%')"
    )  # 2 of 9


@in_browser
@pytest.mark.parametrize(
    ("order", "first", "last"),
    [
        ("best", "perfect/1", "spoiled/1"),
        ("blurriest", "good/1", "same/1"),
        ("name", HOSTILE, "spoiled/1"),
        ("order", "good/1", HOSTILE),
    ],
    ids=["best", "blurriest", "name", "order"],
)
def test_images_are_sorted(show, report, order, first, last):
    window = show(report)
    choose(window, "sort", order)
    keys = listed(window)
    assert sorted(keys) == sorted(WORST_FIRST)
    assert (keys[0], keys[-1]) == (first, last)
    if order == "name":
        assert keys.index("flagged/9") < keys.index("flagged/10")


@in_browser
def test_images_are_filtered(show, report):
    window = show(report)
    tick(window, "collapsed")
    assert listed(window) == ["spoiled/1", "fallen/2"]  # and not the one that lost 3 dB to the digit
    assert text(window, "#count") == "2 of 9"
    tick(window, "collapsed")
    tick(window, "flagged")
    assert listed(window) == ["flagged/10"]
    assert window.run("[...document.querySelectorAll('.card mark')].map(mark => mark.textContent)") == [
        "flat",
        "too dark",
        "shown instead: blurred input",
    ]
    tick(window, "flagged")
    tick(window, "kept")
    assert listed(window) == ["fallen/2", HOSTILE, "good/1"]
    tick(window, "kept")
    choose(window, "words", "FLAGGED")
    assert listed(window) == ["flagged/10", "flagged/9"]
    choose(window, "words", "no such image")
    assert listed(window) == []


@in_browser
def test_a_bar_lists_its_images(show, report):
    window = show(report)
    bars = "[...document.querySelectorAll('rect.bar-of')]"
    names = window.run(f"{bars}.map(bar => bar.getAttribute('aria-label'))")
    assert names[0] == "-\u221e dB: 1 image"
    assert names[-1] == "\u221e dB: 1 image"
    assert sum(int(re.search(r": (\d+) images?", name)[1]) for name in names) == 9
    assert window.run(f"{bars}.filter(bar => bar.classList.contains('collapsed')).length") == 2
    limit = window.run("document.querySelector('svg:not(.scatter) line.limit').getBoundingClientRect().left")
    for left, right, lost in window.run(
        f"{bars}.map(bar => [bar.getBoundingClientRect().left, bar.getBoundingClientRect().right,"
        " bar.classList.contains('collapsed')])"
    ):
        assert right <= limit + 1 if lost else left >= limit - 1
    for position, name in enumerate(names[1:-1], 1):
        low, high = (float(number) for number in re.match(r"(\S+) to (\S+) dB", name).groups())
        window.run(f"{bars}[{position}].dispatchEvent(new Event('click'))")
        gains = window.run("[...document.querySelectorAll('.card')].map(card => card.image.results[0].gain)")
        assert len(gains) == int(name.split()[-2])
        assert all(low <= gain < high for gain in gains)
    window.run("document.getElementById('range').click()")
    (edge,) = (i for i, name in enumerate(names) if name.startswith("-3.00 to"))
    window.run(f"{bars}[{edge}].focus()")
    window.press("Enter")
    assert listed(window) == ["edge/1"]
    assert visible(window, "#range")
    window.run("document.getElementById('range').click()")
    assert len(listed(window)) == 9
    window.click(*window.place("rect.bar-of"))
    assert listed(window) == ["spoiled/1"]


@in_browser
def test_a_point_opens_its_image(show, report):
    window = show(report)
    assert "NaN" not in window.run("document.getElementById('charts').innerHTML")
    assert window.run("document.querySelectorAll('circle').length") == 9
    assert (
        window.run("[...document.querySelectorAll('.scatter text')].filter(t => t.textContent === '\u221e').length")
        == 2
    )
    window.run("[...document.querySelectorAll('circle')][1].id = 'fallen'")
    window.hover(*window.place("#fallen"))
    assert "fallen/2" in text(window, "#tip")
    assert "-5.00 dB" in text(window, "#tip")
    window.click(*window.place("#fallen"))
    window.until("!document.getElementById('viewer').hidden")
    assert text(window, "#key") == "fallen/2"
    assert not visible(window, "#tip")


@in_browser
def test_points_below_the_collapse_line_are_those_that_collapsed(show, report):
    window = show(report)
    tick(window, "collapsed")
    rows = window.run(
        """(() => {
          const line = document.querySelector('.scatter line.limit');
          const [x1, y1, x2, y2] = ['x1', 'y1', 'x2', 'y2'].map(name => Number(line.getAttribute(name)));
          return [...document.querySelectorAll('circle')].map(dot => {
            const [x, y] = [Number(dot.getAttribute('cx')), Number(dot.getAttribute('cy'))];
            const below = y - (y1 + (x - x1) / (x2 - x1) * (y2 - y1));
            return [below, dot.classList.contains('collapsed'), dot.classList.contains('faint')];
          });
        })()"""
    )
    for below, collapsed, faint in rows:
        assert (below > 0.01) == collapsed
        assert faint != collapsed
    edge = rows[7][0]
    assert abs(edge) < 0.01  # 3 dB lost lie on the line


@in_browser
def test_the_page_opens_with_images_of_the_best_the_middle_and_the_worst(show, tmp_path):
    made = fill_with_strips(tmp_path)
    window = show(write_report(tmp_path, made))
    window.show(390, 844)
    found = window.run("[...document.querySelectorAll('.example')].map(one => [one.title, one.innerText])")
    assert [title for title, _ in found] == ["perfect/1", "flagged/9", "spoiled/1"]
    assert [w for _, words in found for w in ("best", "median", "worst") if w in words] == [
        "best",
        "median",
        "worst",
    ], found
    tops = window.run("['.example', 'table', '#charts'].map(one => document.querySelector(one).offsetTop)")
    assert tops == sorted(tops)
    assert window.run("document.documentElement.scrollWidth <= innerWidth")
    for number, colour in enumerate(("255, 0, 0", "0, 128, 0", "0, 0, 255")):
        style = f"getComputedStyle(document.querySelectorAll('.example')[0].querySelectorAll('.part')[{number}])"
        place = window.run(f"{style}.backgroundPositionX")  # browsers say 0 as 0% or 0px
        assert place.removesuffix("%").removesuffix("px") == f"{50 * number}", colour
    window.run("document.querySelector('.example').click()")
    window.until("document.getElementById('key').textContent === 'perfect/1'")
    assert not window.problems


@in_browser
def test_hostile_names_are_text(show, report):
    window = show(report)
    before = window.run("document.querySelectorAll('*').length > 0 && document.title")
    choose(window, "words", "onerror")
    assert listed(window) == [HOSTILE]
    window.click(*window.place(".card img"))
    window.until("!document.getElementById('viewer').hidden")
    images_are_there(window)
    assert text(window, "#key") == HOSTILE
    assert panes(window) == ["blurred", "masks", "result", "sharp", "error"]
    assert window.run("document.title") == before
    assert all(address.startswith(("file:", "data:", "about:")) for address in window.requests)


@in_browser
@pytest.mark.parametrize("place", ["#0/no%20such%20image", "#7/good%2F1", "#0/%E0%A4%A", "#x", "#0/"])
def test_addresses_of_no_image_show_the_list(show, report, place):
    window = show(report, place)
    assert len(listed(window)) == 9
    assert not visible(window, "#viewer")


@in_browser
def test_a_page_without_its_images_says_so(window, report, tmp_path):
    lonely = tmp_path / "report.html"
    shutil.copyfile(report, lonely)
    window.open("about:blank")
    window.open(f"{lonely.as_uri()}#0/good%2F1")
    window.until("!document.getElementById('missing').hidden && document.querySelectorAll('.pane img').length < 5")
    assert "beside it" in text(window, "#missing")
    window.until("document.querySelector('.pane[data-name=result] img').src.startsWith('data:')")


@in_browser
def test_light_and_dark_follow_the_person(show, report):
    found = {}
    for dark in (False, True):
        window = show(report, dark=dark)
        found[dark] = colour_at(window, 3, 3)
        text_colour = window.run("getComputedStyle(document.querySelector('h1')).color")
        assert (int(re.search(r"\d+", text_colour)[0]) > 128) == dark
    assert min(found[False]) > 240
    assert max(found[True]) < 40


@in_browser
@pytest.mark.parametrize("place", ["", "#0/good%2F1"])
def test_narrow_windows_are_not_scrolled_sideways(show, report, place):
    window = show(report, place, width=390, height=800)
    if place:
        images_are_there(window)
    assert window.run("document.documentElement.scrollWidth <= innerWidth")
    window.press("s")  # the slider, in an image
    assert window.run("document.documentElement.scrollWidth <= innerWidth")


@in_browser
def test_long_lists_are_drawn_as_they_are_scrolled(show, tmp_path):
    scores = tuple(score(f"{n:04d}", 20.0, 20.0 + n / 100) for n in range(300))
    made = results(scores=scores)
    fill(tmp_path, made, kept=())
    window = show(write_report(tmp_path, made))
    first = window.run("document.querySelectorAll('.card').length")
    assert first < 300
    assert window.run("document.querySelectorAll('.card img[src]').length") < first  # decoded when they are in sight
    window.run("[...document.querySelectorAll('.card')].at(-1).focus()")
    window.press("j")
    assert window.run("document.activeElement.image.key") == f"{first:04d}"
    window.until("scrollTo(0, 1e9), document.querySelectorAll('.card').length === 300")
    window.until("document.querySelectorAll('.card')[299].querySelector('img').complete")


@in_browser
def test_a_report_without_any_image_is_still_a_report(show, tmp_path):
    window = show(write_report(tmp_path, results()))
    assert len(listed(window)) == 9
    window.press("j", "Enter")
    window.until("!document.getElementById('viewer').hidden")
    window.press("a", "s", "1", "m", "+", "j")
    assert panes(window) == []

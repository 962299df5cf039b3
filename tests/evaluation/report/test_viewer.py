"""The viewer of a report: one image, its result and masks, in a browser."""

from __future__ import annotations

import re

import pytest
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
    transforms,
    visible,
)
from toy_reports import BLUE, GREEN, HOSTILE, RED, WIDTH, WORST_FIRST, fill, results

from samdeblur.evaluation.report.write import write_report
from samdeblur.evaluation.results import Score


@in_browser
def test_an_image_is_shown_with_masks_and_error(show, report):
    window = open_viewer(show, report)
    assert panes(window) == ["blurred", "masks", "result", "sharp", "error"]
    assert window.run("[...document.querySelectorAll('.pane figcaption')].map(c => c.innerText)")[:4] == [
        "1 blurred 20.00 dB",
        "2 masks",
        "3 result 23.00 dB, +3.00 dB",
        "4 sharp",
    ]
    for name, colour in (("blurred", RED), ("result", GREEN), ("sharp", BLUE)):
        assert like(colour_at(window, *window.place(f".pane[data-name={name}] .stage", 0.3)), colour)
    assert not like(colour_at(window, *window.place(".pane[data-name=masks] .stage", 0.3)), RED)
    error = ".pane[data-name=error] .stage"
    assert like(colour_at(window, *window.place(error, 0.9)), (0, 0, 0))  # the result is right there
    bright = colour_at(window, *window.place(error, 0.4))
    assert min(bright[:2]) > 150
    choose(window, "stretch", "0")
    dark = colour_at(window, *window.place(error, 0.4))
    assert sum(dark) < sum(bright) - 100
    rows = window.run("[...document.querySelectorAll('#scores tr')].map(r => [...r.children].map(c => c.textContent))")
    assert rows == [
        ["", "PSNR", "SSIM (wang)", "lpips", "change, dB", ""],
        ["blurred", "20.00", "0.5000", "", "", ""],
        ["map", "23.00", "0.2500", "0.1250", "+3.00", ""],
    ]


@in_browser
def test_all_images_zoom_and_move_together(show, report):
    window = open_viewer(show, report)
    assert set(transforms(window)) == {"matrix(1, 0, 0, 1, 0, 0)"}
    stage = ".pane[data-name=result] .stage"
    x, y = window.place(stage, 0.25, 0.75)
    window.wheel(x, y, -480)
    (zoomed,) = set(transforms(window))
    scale, *_, left, top = (float(number) for number in re.findall(r"-?[\d.]+(?:e-?\d+)?", zoomed))
    assert scale == 4
    width, height = window.run(
        f"[document.querySelector('{stage}').clientWidth, document.querySelector('{stage}').clientHeight]"
    )
    assert left == pytest.approx((0.25 - 0.25 * 4) * width, abs=4)  # the place under the cursor stays
    assert top == pytest.approx((0.75 - 0.75 * 4) * height, abs=4)
    window.drag([(x, y), (x + 10, y + 5), (x + 30, y + 12)])
    (moved,) = set(transforms(window))
    assert moved != zoomed
    assert float(moved.split(",")[4]) == pytest.approx(left + 30, abs=1)
    assert text(window, "#scale") == "400%"
    window.drag([(x, y), (x + 3000, y)])  # not beyond the border
    assert float(transforms(window)[0].split(",")[4]) == 0
    window.press("-", "-")
    assert text(window, "#scale") == "178%"
    window.press("0")
    assert set(transforms(window)) == {"matrix(1, 0, 0, 1, 0, 0)"}
    window.press("+")
    window.press("Shift+ArrowRight")
    (moved,) = set(transforms(window))
    assert float(moved.split(",")[4]) < 0
    window.press("ArrowRight")  # another image is seen whole
    assert set(transforms(window)) == {"matrix(1, 0, 0, 1, 0, 0)"}


@in_browser
def test_the_slider_shows_one_image_on_either_side(show, report):
    window = open_viewer(show, report)
    window.press("s")
    images_are_there(window)
    assert panes(window) == ["slider"]
    assert window.run("[...document.querySelectorAll('.end')].map(end => end.textContent)") == ["blurred", "result"]

    def sides(*places):
        return [colour_at(window, *window.place(".stage", u, 0.3)) for u in places]

    left, right = sides(0.45, 0.55)
    assert like(left, RED)
    assert like(right, GREEN)
    window.press("]", "]", "]", "]", "]")
    assert text(window, "#border") == ""
    assert window.run("document.getElementById('border').value") == "60"
    assert all(like(found, RED) for found in sides(0.45, 0.55))
    window.drag([window.place(".handle"), window.place(".stage", 0.4, 0.2), window.place(".stage", 0.2, 0.2)])
    assert like(sides(0.18)[0], RED)
    assert like(sides(0.22)[0], GREEN)
    choose(window, "border", "90")
    choose(window, "left", "sharp")
    images_are_there(window)
    assert like(sides(0.45)[0], BLUE)
    window.wheel(*window.place(".stage", 0.9, 0.5), -240)
    window.drag([window.place(".handle", 0.5, 0.2), window.place(".stage", 0.5, 0.2)])  # also while zoomed
    assert window.run("Math.round(document.getElementById('border').value)") == 50
    assert len(set(transforms(window))) == 1


@in_browser
def test_the_record_of_the_mask_under_the_cursor_is_shown(show, report):
    window = open_viewer(show, report)
    stage = ".pane[data-name=masks] .stage"
    window.hover(*window.place(stage, 0.25, 0.5))  # on both, the smaller first
    assert visible(window, "#record")
    shown = window.run("document.getElementById('record').innerText").split("\n")
    assert shown[0] == "mask 1"
    assert shown[1:7] == ["area, pixels", "600", "IoU, as guessed", "0.25", "box x, y, w, h", "10, 15"]
    assert shown[-1].startswith("1 of 2 masks")
    window.click(*window.place(stage, 0.25, 0.5))
    assert text(window, "#record").startswith("mask 0")
    dim = colour_at(window, *window.place(stage, 0.75, 0.5))
    window.hover(*window.place(stage, 0.05, 0.5))
    assert text(window, "#record").startswith("mask 0")
    window.hover(*window.place(stage, 0.75, 0.5))
    assert not visible(window, "#record")
    assert sum(dim) < sum(colour_at(window, *window.place(stage, 0.75, 0.5))) + 30
    window.hover(*window.place(".pane[data-name=result] .stage", 0.25, 0.5))
    assert not visible(window, "#record")  # masks are not shown there
    window.wheel(*window.place(stage, 0.99, 0.5), -480)
    window.hover(*window.place(stage, 0.1, 0.5))  # 0.77 of the image
    assert not visible(window, "#record")


@in_browser
def test_masks_are_switched_and_stepped_with_keys(show, report):
    window = open_viewer(show, report)
    hidden = "[...document.querySelectorAll('.pane canvas')].map(canvas => canvas.hidden)"
    assert window.run(hidden) == [True, False, True, True, True]
    window.press("m")
    assert window.run(hidden) == [False] * 5
    window.hover(*window.place(".pane[data-name=result] .stage", 0.25, 0.5))
    assert text(window, "#record").startswith("mask 1")
    window.press("m")
    assert window.run(hidden) == [True] * 5
    assert not visible(window, "#record")
    window.press("m", ".")
    assert text(window, "#record").startswith("mask 0")  # the largest
    window.press(".")
    assert text(window, "#record").startswith("mask 1")
    window.press(",", ",")
    assert text(window, "#record").startswith("mask 1")  # and round again


@in_browser
def test_a_mask_that_was_chosen_stays_in_view_when_the_image_is_enlarged(show, report):
    """It would be the one bright spot of an image in shade, and out of sight."""
    window = open_viewer(show, report)
    style = "document.getElementById('stages').style.getPropertyValue"
    place = f"[['x', 0.25], ['y', 0.5]].map(([of, at]) => +{style}(`--${{of}}`) + at * {style}('--scale'))"
    window.press(".", ".")  # the smaller, around (0.25, 0.5) of the image
    for _ in range(3):
        window.press("+")
        x, y = window.run(place)
        assert 0 < x < 1, x
        assert 0 < y < 1, y
    window.press(",", ".")  # back to the larger, and to this one: it comes into the middle again
    x, y = window.run(place)
    assert abs(x - 0.5) < 0.35, x
    assert abs(y - 0.5) < 0.01, y


@in_browser
def test_only_listed_images_are_walked_through(show, report):
    window = show(report)
    tick(window, "collapsed")
    window.press("j", "Enter")
    window.until("!document.getElementById('viewer').hidden")
    window.press("j", "j", "j")
    window.until("document.getElementById('key').textContent === 'fallen/2'")
    assert text(window, "#place") == "2 of 2"


@in_browser
def test_an_image_has_an_address_of_its_own(show, report):
    window = open_viewer(show, report, HOSTILE)
    assert text(window, "#key") == HOSTILE
    window.run("document.getElementById('back').click()")
    window.until("document.getElementById('viewer').hidden")
    window.run("history.back()")
    window.until("!document.getElementById('viewer').hidden")
    assert text(window, "#key") == HOSTILE


@in_browser
def test_images_that_were_not_kept_show_their_thumbnail(show, report):
    window = open_viewer(show, report, "edge/1")
    assert panes(window) == ["result"]
    assert "--report-images" in text(window, "#missing")
    assert like(colour_at(window, *window.place(".stage")), GREEN)
    assert window.run("document.querySelector('.stage').clientWidth") <= 3 * WIDTH
    assert not visible(window, "#ways")
    window.press("s", "m", ".", "2", "n", "+")  # nothing of it is here, and nothing breaks
    assert panes(window) == ["result"]
    assert "21.00" in text(window, "#scores")


@in_browser
def test_images_without_a_sharp_one_are_compared_with_the_blurred(show, tmp_path):
    made = results(scores=(Score("b"), Score("a", flags=("flat",)), Score("c", {"niqe": 4.0})), recipe="")
    fill(tmp_path, made, kept=("a", "b"), sharp=False)
    window = show(write_report(tmp_path, made))
    assert not visible(window, "#charts")
    assert not visible(window, "#collapsed")
    assert visible(window, "#flagged")
    assert listed(window) == ["b", "a", "c"]
    window.press("j", "Enter")
    window.until("!document.getElementById('viewer').hidden")
    images_are_there(window)
    assert panes(window) == ["blurred", "masks", "result", "change"]
    window.press("s")
    assert window.run("[...document.querySelectorAll('.end')].map(end => end.textContent)") == ["blurred", "result"]
    window.press("j", "j")
    window.until("document.getElementById('key').textContent === 'c'")
    assert "4.0000" in text(window, "#scores")


@in_browser
def test_the_page_is_used_with_the_keyboard_alone(show, report):
    window = show(report)
    key = "document.activeElement.image?.key"
    window.press("j", "j")
    assert window.run(key) == WORST_FIRST[1]
    window.press("ArrowRight", "k", "ArrowLeft")
    assert window.run(key) == WORST_FIRST[0]
    window.press("j", "Enter")
    window.until("!document.getElementById('viewer').hidden")
    assert text(window, "#key") == WORST_FIRST[1]
    assert text(window, "#place") == "2 of 9"
    window.press("ArrowRight", "j")
    assert text(window, "#key") == WORST_FIRST[3]
    window.press("ArrowLeft", "k", "k", "k", "k")
    assert text(window, "#key") == WORST_FIRST[0]
    window.press("j")
    assert text(window, "#key") == WORST_FIRST[1]
    for number, name in enumerate(["blurred", "masks", "result", "sharp", "error"], 1):
        window.press(str(number))
        assert panes(window) == [name]
        assert window.run("document.querySelector('#views [aria-pressed=true]').textContent").startswith(name)
    window.press("9")
    assert panes(window) == ["error"]
    window.press("a")
    assert len(panes(window)) == 5
    window.press("?")
    assert visible(window, "#help")
    keys = text(window, "#keys")
    assert all(words in keys for words in ("next image", "zoom in", "slider", "masks", "back to the list"))
    window.press("Escape")
    window.until("!document.getElementById('help').open")
    assert visible(window, "#viewer")
    window.press("Escape")
    window.until("document.getElementById('viewer').hidden")
    assert window.run(key) == WORST_FIRST[1]  # where one was
    window.press("c")
    assert listed(window) == ["spoiled/1", "fallen/2"]
    window.press("c", "f")
    assert listed(window) == ["flagged/10"]
    window.press("f", "/", "c", "j")
    assert window.run("document.getElementById('words').value") == "cj"
    assert listed(window) == []

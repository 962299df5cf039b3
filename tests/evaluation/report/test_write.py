"""The page as it is written, and as a browser shows it."""

from __future__ import annotations

import io
import json
import math
import re
import shutil
import unicodedata
from dataclasses import replace
from html.parser import HTMLParser
from urllib.parse import quote, unquote

import numpy as np
import pytest
from browser import PROGRAM, Browser
from PIL import Image

from samdeblur.evaluation.report.images import keep_images, keep_strip, keep_thumbnail
from samdeblur.evaluation.report.write import write_comparison, write_report
from samdeblur.evaluation.results import Conventions, Inference, Results, Score, SetResult, Trained, examples
from samdeblur.evaluation.tables.cells import Table
from samdeblur.storage import AtomMap

in_browser = pytest.mark.skipif(PROGRAM is None, reason="neither Chromium nor Chrome is here")

HEIGHT, WIDTH = 60, 80
RED, GREEN, BLUE = (200, 30, 30), (30, 160, 30), (30, 30, 200)
HOSTILE = "</script><img src=x onerror=\"document.title='owned'\">'\"&<!--\u2028/../?#%é"
SET = "toy test (masks 11111111)"


def score(key, before, after, **more):
    metrics = {"psnr_blurred": before, "psnr": after, "ssim_wang_blurred": 0.5, "ssim_wang": 0.25, "lpips": 0.125}
    return Score(key, metrics, **more)


SCORES = (
    score("good/1", 20.0, 23.0),
    score("fallen/2", 25.0, 20.0),
    score("flagged/10", 22.0, 21.0, flags=("flat", "too dark"), fallback="blurred input"),
    score("flagged/9", 23.0, 22.5),
    score("perfect/1", 30.0, math.inf),
    score("spoiled/1", math.inf, 30.0),
    score("same/1", math.inf, math.inf),
    score("edge/1", 24.0, 21.0),
    score(HOSTILE, 21.0, 21.5),
)
WORST_FIRST = ["spoiled/1", "fallen/2", "edge/1", "flagged/10", "flagged/9", "same/1", HOSTILE, "good/1", "perfect/1"]
KEPT = ("good/1", "fallen/2", HOSTILE)


def results(method="map", scores=SCORES, **changes):
    made = SetResult("toy", "test", "1" * 64, scores)
    return Results(method, f"runs/{method}/best.safetensors", "ab" * 32, (replace(made, **changes),))


def plain(colour):
    return np.full((HEIGHT, WIDTH, 3), colour, np.uint8)


def masks():
    """One over the left half, one in its middle; nothing on the right."""
    planes = np.zeros((2, HEIGHT, WIDTH), bool)
    planes[0, :, : WIDTH // 2] = True
    planes[1, 15:45, 10:30] = True
    return AtomMap.from_masks(planes)


def fill(folder, made, kept=KEPT, colour=GREEN, sharp=True, thumbnails=True):
    """Images of an evaluation: blurred red, sharp blue with a green stripe at the right end, results green."""
    atoms = masks()
    records = {"area": [2400.0, 600.0], "predicted_iou": [0.5, 0.25], "bbox_x": [0.0, 10.0], "bbox_y": [0.0, 15.0]}
    truth = plain(BLUE)
    truth[:, -20:] = GREEN
    for result in made.sets:
        for found in result.scores:
            if thumbnails:
                keep_thumbnail(folder, result.name, found.key, plain(colour))
            if found.key in kept:
                sides = plain(RED), plain(colour), truth if sharp else None
                keep_images(folder, result.name, found.key, *sides, atoms, records)
    return folder


class Page(HTMLParser):
    """Addresses, headings and text of a page, and the data of its scripts."""

    def __init__(self, path):
        super().__init__()
        self.html = path.read_text(encoding="utf-8")
        self.links, self.text, self.tags, self._open = [], {}, [], []
        self.feed(self.html)
        self.data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', self.html)[1])

    def handle_starttag(self, tag, attributes):
        self._open.append(tag)
        self.tags.append(tag)
        self.links += [value for name, value in attributes if name in ("src", "href", "srcset", "action", "poster")]

    def handle_data(self, data):
        tag = self._open[-1] if self._open else ""
        self.text[tag] = self.text.get(tag, "") + data


def test_a_report_needs_nothing_but_its_images(tmp_path):
    made = results()
    page = Page(write_report(fill(tmp_path, made), made))
    assert page.links == []
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|@import|url\((?!#)|<link|<iframe", page.html)
    assert "default-src 'none'" in page.html
    (shown,) = page.data["sets"]
    for image in shown["images"]:
        for name in {"blurred", "sharp", "masks"} & image.keys():
            assert image[name].startswith("images/")
            assert "//" not in image[name]
    assert [image["key"] for image in shown["images"] if "blurred" in image] == ["good/1", "fallen/2", HOSTILE]
    assert all(image["size"] == [WIDTH, HEIGHT] for image in shown["images"] if "blurred" in image)


def test_scores_are_in_the_page_with_all_their_digits(tmp_path):
    third = score("third", 20 + 1 / 3, 20 - 1 / 3)
    page = Page(write_report(tmp_path, results(scores=(third, *SCORES))))
    (shown,) = page.data["sets"]
    assert [metric["name"] for metric in shown["metrics"]] == ["psnr", "ssim_wang", "lpips"]
    first, *_ = shown["images"]
    assert first["results"] == [{"before": [20 + 1 / 3, 0.5, None], "after": [20 - 1 / 3, 0.25, 0.125]}]
    by_key = {image["key"]: image["results"][0] for image in shown["images"]}
    assert by_key["perfect/1"]["after"][0] == by_key["spoiled/1"]["before"][0] == "Infinity"
    assert by_key["flagged/10"]["flags"] == ["flat", "too dark"]
    assert by_key["flagged/10"]["fallback"] == "blurred input"


def test_a_report_says_what_was_evaluated_and_how(tmp_path):
    made = replace(
        results(inference=Inference(tlc=256), unready=7),
        conventions=Conventions(collapse_db=2.0, align="ecc"),
        environment={"torch": "2.9", "device": "cpu"},
    )
    page = Page(write_report(tmp_path, made))
    facts = page.text["li"]
    for part in ("runs/map/best.safetensors", "ab" * 32, "more than 2 dB", "ecc", "torch 2.9", "device cpu"):
        assert part in facts
    notes = page.data["sets"][0]["notes"]
    assert any("TLC 256" in note for note in notes)
    assert any("7" in note for note in notes)
    assert SET in page.text["td"]


def test_names_are_never_read_as_html(tmp_path):
    made = replace(results(method=HOSTILE, dataset=HOSTILE), weights=HOSTILE)
    run = fill(tmp_path / "run", made)
    table = Table(HOSTILE, [HOSTILE], [[HOSTILE]])
    compared = write_comparison(tmp_path / "both", [made, made], [run, run], {HOSTILE: b""}, [table])
    for path in (write_report(run, made), compared):
        page = Page(path)
        assert "</script><img" not in page.html
        assert page.tags.count("script") == 2
        assert page.tags.count("img") == (1 if path == compared else 0)
        assert HOSTILE in page.text["h1"] + page.text["h2"]
        assert page.data["sets"][0]["name"].startswith(HOSTILE)


def test_a_comparison_joins_images_however_they_are_named(tmp_path):
    apart = unicodedata.normalize("NFD", "été")
    names = {"none": ("été/1", "b"), "map": (f"{apart}/1.png", "b.jpg")}
    made = {m: results(m, scores=tuple(score(key, 20.0, 21.0) for key in keys)) for m, keys in names.items()}
    folders = [fill(tmp_path / m, made[m], kept=names[m], colour=c) for m, c in (("none", GREEN), ("map", BLUE))]
    page = Page(write_comparison(tmp_path / "both", list(made.values()), folders, {}))
    (shown,) = page.data["sets"]
    assert [image["key"] for image in shown["images"]] == list(names["none"])
    for image in shown["images"]:
        files = [tmp_path / "both" / unquote(result["file"]) for result in image["results"]]
        assert [tuple(np.array(Image.open(file))[0, 0]) for file in files] == [GREEN, BLUE]


def test_names_that_are_no_text_do_not_stop_a_report(tmp_path):
    made = results(method="map\udcff", scores=(score("torn\udcff", 20.0, 21.0),))
    page = Page(write_report(fill(tmp_path, made, kept=("torn\udcff",)), made))
    (image,) = page.data["sets"][0]["images"]
    assert image["key"] == "torn?"
    assert "blurred" in image


def test_a_comparison_borrows_the_images_of_all_runs(tmp_path):
    one, other = results("none"), results("map", scores=SCORES[:3])
    folders = [fill(tmp_path / "none", one), fill(tmp_path / "map", other, kept=("good/1",), colour=BLUE)]
    path = write_comparison(tmp_path / "both", [one, other], folders, {"curves": b"png"}, [Table("t", ["a"], [["b"]])])
    for folder in folders:
        shutil.rmtree(folder)  # the comparison stands alone
    page = Page(path)
    assert page.links == ["data:image/png;base64,cG5n"]
    assert page.data["networks"] == ["none", "map"]
    (shown,) = page.data["sets"]
    images = {image["key"]: image for image in shown["images"]}
    good, fallen = images["good/1"], images["fallen/2"]
    for image, colours in ((good, [GREEN, BLUE]), (fallen, [GREEN])):
        names = [result["file"] for result in image["results"] if "file" in result]
        files = [tmp_path / "both" / unquote(name) for name in names]
        assert [tuple(np.array(Image.open(file))[0, 0]) for file in files] == colours
    assert "file" not in fallen["results"][1]
    assert "thumbnail" in fallen["results"][1]  # in its place
    assert images["edge/1"]["results"][1] is None
    worst = [["thumbnail" in (result or {}) for result in image["results"]] for image in shown["images"][3:]]
    assert worst == [[True, False]] * 6


def test_runs_of_one_method_have_names_of_their_own(tmp_path):
    runs = [results(), results(), results(inference=Inference(tile=512, overlap=64))]
    page = Page(write_comparison(tmp_path, runs, [tmp_path / "x/a", tmp_path / "x/b", tmp_path / "c"], {}))
    assert page.data["networks"] == ["map (a)", "map (b)", "map, tiles 512/64"]


def test_a_comparison_says_whose_inference_was_another(tmp_path):
    runs = [results("none"), results("map", inference=Inference(tlc=256)), results("cat", inference=Inference(tlc=256))]
    for of, note in ((runs, "inference: TLC 256 (map, TLC 256, cat, TLC 256)"), (runs[1:], "inference: TLC 256")):
        page = Page(write_comparison(tmp_path, of, [tmp_path] * len(of), {}))
        assert page.data["sets"][0]["notes"] == [note]


def test_sets_of_other_masks_are_other_sets(tmp_path):
    runs = [results("none"), results("map", recipe="2" * 64)]
    page = Page(write_comparison(tmp_path, runs, [tmp_path] * 2, {}))
    assert [shown["networks"] for shown in page.data["sets"]] == [[0], [1]]


# The page in a browser


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


def listed(window):
    return window.run("[...document.querySelectorAll('.card')].map(card => card.image.key)")


def choose(window, name, value):
    window.run(
        f"(() => {{ const box = document.getElementById({name!r}); box.value = {json.dumps(value)};"
        "box.dispatchEvent(new Event('change')); box.dispatchEvent(new Event('input')); })()"
    )


def tick(window, name):
    window.run(f"document.getElementById({name!r}).click()")


def text(window, selector):
    return window.run(f"document.querySelector({selector!r}).textContent")


def visible(window, selector):
    return window.run(f"document.querySelector({selector!r}).checkVisibility()")


def colour_at(window, x, y):
    image = Image.open(io.BytesIO(window.screenshot())).convert("RGB")
    return image.getpixel((round(x), round(y)))


def like(colour, other):
    return max(abs(a - b) for a, b in zip(colour, other, strict=True)) < 12


def open_viewer(show, path, key="good/1", **look):
    window = show(path, f"#0/{quote(key, safe='')}", **look)
    images_are_there(window)
    return window


def images_are_there(window):
    window.until("[...document.querySelectorAll('.pane img')].every(p => p.complete && p.naturalWidth)")
    window.until("document.querySelector('.pane') !== null")
    if window.run("!document.getElementById('masked').hidden && document.querySelectorAll('.pane').length > 1"):
        window.until("document.querySelector('.pane canvas:not([hidden])') !== null")


def transforms(window):
    return window.run("[...document.querySelectorAll('.layer')].map(layer => getComputedStyle(layer).transform)")


def panes(window):
    return window.run("[...document.querySelectorAll('.pane')].map(pane => pane.dataset.name)")


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


def fill_with_strips(folder):
    made = results()
    (found,) = made.sets
    for _, score in examples(found.scores):
        keep_strip(folder, found.name, score.key, plain(RED), plain(GREEN), plain(BLUE))
    return made


def test_what_to_beware_of_stands_before_the_numbers(tmp_path):
    made = results(segmenter="superpixels 1", left_out={"gone": "<b>quarantined</b>"}, unready=1)
    made = replace(made, trained=Trained(4, 10, 6, "sam 2"))
    html = Page(write_report(tmp_path, made)).html
    for words in (
        "The weights are of step 4 of 10, which is not finished: it stands at step 6.",
        "9 images, too few for means to say much.",
        "the masks are of superpixels 1; the network was trained with masks of sam 2",
        "1 image left out: gone (&lt;b&gt;quarantined&lt;/b&gt;).",
    ):
        assert 0 < html.find(words) < html.index("<table>"), words
    assert 'class="beware"' not in Page(write_report(tmp_path, results(scores=SCORES * 2))).html


def test_intervals_of_a_comparison_are_folded(tmp_path):
    tables = [Table("Scores", ["a"], [["1"]]), Table("With intervals", ["b"], [["2"]])]
    html = write_comparison(tmp_path / "t", [results()], [tmp_path], {"training": b"PNG"}, tables).read_text()
    assert (
        html.index("<h2>Scores</h2>")
        < html.index("<details><summary>Intervals")
        < html.index("<h2>With intervals</h2>")
    )
    assert html.index("<summary>Training</summary>") < html.index("data:image/png")


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
def test_a_report_without_any_image_is_still_a_report(show, tmp_path):
    window = show(write_report(tmp_path, results()))
    assert len(listed(window)) == 9
    window.press("j", "Enter")
    window.until("!document.getElementById('viewer').hidden")
    window.press("a", "s", "1", "m", "+", "j")
    assert panes(window) == []


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

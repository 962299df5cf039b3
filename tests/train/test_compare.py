from __future__ import annotations

import base64
import io
import math
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from samdeblur.train import Results, Score
from samdeblur.train.compare import (
    PICTURES,
    as_markdown,
    comparison_report,
    comparison_tables,
    load_pictures,
    run_report,
    run_table,
    save_pictures,
    worst_first,
    write_report,
)
from samdeblur.train.evaluate import SetResult
from samdeblur.train.report import MAX_SIDE, Strip, Table, encode_picture, number, render_report


def score(key, blurred, result):
    return Score(key, blurred, result, 0.5, 0.25, 0.75, 0.125)


def results(method, gains, step_0=None, split="test", recipe="1" * 64):
    """Results on one set whose images start at 20 dB and win the gains."""
    scores = tuple(score(key, 20.0, 20.0 + gain) for key, gain in gains.items())
    return Results(method, f"{method}.safetensors", "ab" * 32, (SetResult("toy", split, recipe, scores, step_0),))


class Page(HTMLParser):
    """What a page shows and what it would load."""

    def __init__(self, html):
        super().__init__()
        self.links, self.pictures, self.headings, self.text, self._tags = [], [], {}, [], []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self._tags.append(tag)
        for name, value in attributes:
            if name in ("src", "href", "srcset", "data", "action", "poster"):
                self.links.append(value)
        if tag == "img":
            self.pictures.append(dict(attributes))
        if tag in ("h1", "h2", "h3"):
            self.headings.setdefault(tag, []).append("")

    def handle_data(self, data):
        self.text.append(data)
        if self._tags and self._tags[-1] in ("h1", "h2", "h3"):
            self.headings[self._tags[-1]][-1] += data

    def handle_endtag(self, tag):
        if tag in self._tags:
            while self._tags.pop() != tag:
                pass


def assert_self_contained(html):
    page = Page(html)
    assert page.links
    assert all(link.startswith(("data:image/jpeg;base64,", "data:image/png;base64,")) for link in page.links)
    for link in page.links:
        Image.open(io.BytesIO(base64.b64decode(link.split(",", 1)[1], validate=True))).load()
    code = html.replace("".join(page.text), "")
    assert not any(word in code for word in ("http:", "https:", "url(", "@import", "<link", "<iframe"))
    return page


@pytest.fixture
def kept(store, tmp_path):
    """run(method, gains) -> results on the store and their folder, the pictures of every image kept."""

    def run(method, gains, **options):
        made = results(method, gains, **options)
        made = replace(made, sets=(replace(made.sets[0], recipe=store.header.fingerprint),))
        folder = tmp_path / method
        for place, found in enumerate(made.sets[0].scores):
            result = np.full((*store.shape(found.key), 3), 10 * place, np.uint8)
            save_pictures(folder, made.sets[0], store, found, result)
        return made, folder

    return run


def pixels(picture):
    data = picture if isinstance(picture, bytes) else base64.b64decode(picture["src"].split(",", 1)[1])
    return np.array(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


def test_pictures_of_an_image_are_kept_and_found_again(store, kept):
    made, folder = kept("map", {"s/1": 2.0, "s/2": 1.0})
    found = load_pictures(folder, made.sets[0], "s/2")
    assert tuple(found) == PICTURES
    assert np.abs(pixels(found["blurred"]) - store.image("blurred", "s/2")).mean() < 12  # JPEG
    assert np.abs(pixels(found["sharp"]) - store.image("sharp", "s/2")).mean() < 12
    assert np.abs(pixels(found["result"]) - 10).max() < 4
    assert np.abs(pixels(found["masks"]) - pixels(found["blurred"])).mean() > 12
    assert load_pictures(folder, made.sets[0], "s/3") == {}
    assert load_pictures(folder, replace(made.sets[0], split="train"), "s/2") == {}


@pytest.mark.parametrize(("one", "other"), [("a/b", "a_b"), ("a/b", "a%2Fb"), ("a", "A")])
def test_pictures_of_images_with_similar_names_do_not_meet(tmp_path, make_store, pair, one, other):
    store = make_store(tmp_path / "names.zarr", {one: pair(0, 20, 20), other: pair(1, 20, 20)})
    made = results("none", {one: 1.0, other: 2.0}).sets[0]
    for place, found in enumerate(made.scores):
        save_pictures(tmp_path, made, store, found, np.full((20, 20, 3), 100 * place, np.uint8))
    for place, key in enumerate((one, other)):
        assert np.abs(pixels(load_pictures(tmp_path, made, key)["result"]) - 100 * place).max() < 4


def test_worst_first_is_by_db_won():
    gains = {"good": 3.0, "bad": -2.0, "middle": 0.5, "perfect": math.inf}
    perfect = (score("spoiled", math.inf, 20.0), score("kept", math.inf, math.inf))
    scores = [*results("none", gains).sets[0].scores, *perfect]
    assert [found.key for found in worst_first(scores)] == ["spoiled", "bad", "kept", "middle", "good", "perfect"]


def test_the_report_of_a_run_is_self_contained_and_shows_the_worst_first(kept):
    made, folder = kept("map", {"s/1": 2.0, "s/2": -1.25, "s/0": 0.5})
    page = assert_self_contained(run_report(made, folder))
    assert page.headings["h3"] == ["s/2: -1.25 dB", "s/0: +0.50 dB", "s/1: +2.00 dB"]
    assert [picture["alt"] for picture in page.pictures] == list(PICTURES) * 3
    text = " ".join(page.text)
    assert all(part in text for part in ("map", "map.safetensors", "ab" * 32, "3 of 3 images, worst first", "18.75 dB"))
    assert np.abs(pixels(page.pictures[2]) - 10).max() < 4  # the result of s/2, the second kept


def test_only_pictures_that_were_kept_are_in_the_report(kept):
    made, folder = kept("map", {"s/1": 2.0, "s/2": 1.0})
    (result,) = made.sets
    more = replace(made, sets=(replace(result, scores=(*result.scores, score("s/3", 20.0, 10.0))),))
    page = assert_self_contained(run_report(more, folder))
    assert page.headings["h3"] == ["s/2: +1.00 dB", "s/1: +2.00 dB"]
    assert any("2 of 3 images" in heading for heading in page.headings["h2"])


def test_names_are_shown_as_they_are_and_never_as_html(kept, store, tmp_path, make_store, pair):
    key, method = "<img src='https://x'>", "</title><script>alert(1)</script>"
    store = make_store(tmp_path / "evil.zarr", {key: pair(0, 20, 20)})
    made = results(method, {key: 1.0})
    save_pictures(tmp_path, made.sets[0], store, made.sets[0].scores[0], np.zeros((20, 20, 3), np.uint8))
    for html in (run_report(made, tmp_path), comparison_report([made], [tmp_path], {})):
        assert method not in html
        assert key not in html
        page = Page(html)
        assert all(link.startswith("data:") for link in page.links)
        assert any(key in heading for heading in page.headings["h3"])


def test_a_table_of_one_run_has_a_row_per_set():
    first, second = results("map", {"a": 1.0, "b": -4.0}, step_0=18.0), results("map", {"a": 2.0}, split="ood")
    table = run_table(replace(first, sets=first.sets + second.sets))
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    assert [row["set"] for row in rows] == [result.name for result in first.sets + second.sets]
    assert rows[0] | {"set": ""} == {
        "set": "",
        "images": "2",
        "PSNR blurred": "20.00",
        "PSNR": "18.50",
        "SSIM blurred": "0.5000",
        "SSIM": "0.2500",
        "SSIM (nafnet)": "0.1250",
        "MCR": "50.00%",
        "step 0": "18.00",
    }
    assert rows[1]["step 0"] == "-"


def test_a_comparison_has_a_row_per_network_after_the_input_and_marks_the_best():
    runs = [
        results("none", {"a": 1.0, "b": 2.0}, step_0=18.0),
        results("map", {"a": 3.0, "b": 3.5}),
        results("cat", {"a": -4.0, "b": 3.0}, step_0=20.5),
    ]
    (table,) = comparison_tables(runs)
    assert table.title == runs[0].sets[0].name
    assert table.columns == ["network", "PSNR", "SSIM", "MCR", "dB over blurred", "dB over its step 0"]
    assert table.rows == [
        ["blurred input", "20.00", "0.5000", "-", "-", "-"],
        ["none", "21.50", "0.2500", "0.00%", "+1.50", "+3.50"],
        ["map", "23.25", "0.2500", "0.00%", "+3.25", "-"],
        ["cat", "19.50", "0.2500", "50.00%", "-0.50", "-1.00"],
    ]
    assert table.best == {(2, 1)}


@pytest.mark.parametrize("change", [{"split": "ood"}, {"recipe": "2" * 64}], ids=["split", "masks"])
def test_results_on_other_images_or_masks_are_not_compared(change):
    tables = comparison_tables([results("none", {"a": 1.0}), results("map", {"a": 2.0}, **change)])
    assert [[row[0] for row in table.rows] for table in tables] == [["blurred input", "none"], ["blurred input", "map"]]


def test_sets_that_a_network_was_not_run_on_lack_its_row():
    one, ood = results("none", {"a": 1.0}), results("none", {"a": 1.0}, split="ood")
    tables = comparison_tables([results("map", {"a": 2.0}), replace(one, sets=one.sets + ood.sets)])
    assert [[row[0] for row in table.rows[1:]] for table in tables] == [["map", "none"], ["none"]]


def test_perfect_images_never_make_a_table_say_nan():
    perfect = replace(
        results("none", {"a": 1.0}),
        sets=(SetResult("toy", "test", "1" * 64, (score("a", math.inf, math.inf),), math.inf),),
    )
    text = as_markdown(run_table(perfect)) + as_markdown(comparison_tables([perfect])[0])
    assert "nan" not in text.replace("nafnet", "")
    assert "inf" in text


def test_a_comparison_report_shows_input_masks_every_result_and_sharp_worst_first(kept):
    (one, first), (other, second) = kept("none", {"s/1": 2.0, "s/2": 1.0}), kept("map", {"s/1": -3.0, "s/2": 5.0})
    (curve,) = [encode_png(np.zeros((4, 4, 3), np.uint8))]
    page = assert_self_contained(comparison_report([one, other], [first, second], {"training of map": curve}))
    assert page.headings["h3"] == ["s/1", "s/2"]
    assert [picture["alt"] for picture in page.pictures] == [
        "training of map",
        *["blurred", "masks", "none", "map", "sharp"] * 2,
    ]
    text = " ".join(page.text)
    assert all(note in text for note in ("22.00 dB", "17.00 dB", "25.00 dB"))


def encode_png(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def test_two_runs_of_one_method_are_both_shown(kept, tmp_path):
    made, folder = kept("map", {"s/1": 2.0})
    page = assert_self_contained(comparison_report([made, made], [folder, folder], {}))
    assert [picture["alt"] for picture in page.pictures] == ["blurred", "masks", "map", "map (2)", "sharp"]
    assert len(comparison_tables([made, made])[0].rows) == 3


def test_a_comparison_without_pictures_still_has_its_tables(tmp_path):
    html = comparison_report([results("none", {"a": 1.0})], [tmp_path], {})
    assert "blurred input" in html
    assert Page(html).links == []


def test_markdown_has_a_cell_per_cell():
    table = Table("t", ["network", "PSNR"], [["a longer name", "1"], ["b", "20.00"]])
    lines = as_markdown(table).splitlines()
    assert [[cell.strip() for cell in line.strip("|").split("|")] for line in (lines[0], *lines[2:])] == [
        ["network", "PSNR"],
        ["a longer name", "1"],
        ["b", "20.00"],
    ]
    assert len({len(line) for line in lines}) == 1
    assert set(lines[1]) <= set("|- ")


def test_a_report_is_written_into_its_folder(tmp_path):
    assert write_report(tmp_path / "new", "<p>é").read_text(encoding="utf-8") == "<p>é"
    assert (tmp_path / "new/report.html").exists()


def test_best_cells_are_marked_and_figures_have_captions():
    table = Table("scores", ["n", "v"], [["a", "1"], ["b", "2"]], frozenset({(1, 1)}))
    html = render_report("t", ["fact"], [table], {}, {"a caption": encode_png(np.zeros((2, 2, 3), np.uint8))})
    assert html.count('class="best"') == 1
    assert '<td class="best">2</td>' in html
    assert Page(html).pictures[0]["alt"] == "a caption"


def test_large_pictures_are_shrunk_and_arrays_are_embedded_as_jpeg():
    large = np.full((MAX_SIDE // 2, 2 * MAX_SIDE, 3), 100, np.uint8)
    assert Image.open(io.BytesIO(encode_picture(large))).size == (MAX_SIDE, MAX_SIDE // 4)
    strip = Strip("s", {"one": large[:8, :8], "two": encode_picture(large[:8, :8])}, {"one": "note"}, "two")
    page = assert_self_contained(render_report("t", [], [], {"set": [strip]}))
    assert len(page.pictures) == 2
    assert page.links[0] == page.links[1]


def test_numbers_of_a_table():
    assert [number(None), number(1.005e1), number(0.12345, 4), number(math.inf)] == ["-", "10.05", "0.1235", "inf"]

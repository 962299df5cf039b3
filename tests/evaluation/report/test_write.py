"""The page as it is written."""

from __future__ import annotations

import re
import shutil
import unicodedata
from dataclasses import replace
from urllib.parse import unquote

import numpy as np
from PIL import Image
from toy_reports import BLUE, GREEN, HEIGHT, HOSTILE, SCORES, SET, WIDTH, Page, fill, results, score

from samdeblur.evaluation.report.write import write_comparison, write_report
from samdeblur.evaluation.results import Conventions, Inference, Trained
from samdeblur.evaluation.tables.cells import Table


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


def test_a_comparison_says_once_what_to_beware_of_in_every_network(tmp_path):
    runs = [results("none"), results("map", segmenter="superpixels 1"), results("cat", segmenter="superpixels 1")]
    runs = [replace(run, trained=Trained(6, 6, 6, "sam 2")) for run in runs]
    folders = [tmp_path / name for name in ("none", "map", "cat")]
    html = write_comparison(tmp_path / "t", runs, folders, {}, []).read_text(encoding="utf-8")
    assert html.count("9 images, too few for means to say much.") == 1
    assert "none: toy test" not in html
    assert html.count("the network was trained with masks of sam 2") == 1
    assert "map, cat: toy test" in html

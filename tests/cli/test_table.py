"""samdeblur-eval table, on results that were written and not computed."""

from __future__ import annotations

import csv
import io
from dataclasses import replace

import pytest
from evaluations import UNSCORED, one_set, results

from samdeblur.evaluation.results import Conventions, Inference, write_results
from samdeblur.evaluation.tables import published
from samdeblur.train.state import CURVES

GOPRO, REDS, REALBLUR = ("GoPro", "test"), ("REDS", "val"), ("RealBlur-J", "test")
TLC = Inference(tlc=256)
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def write(tmp_path):
    """write(name, Results) -> the folder they were written to."""

    def call(name, made):
        write_results(made, tmp_path / name)
        return tmp_path / name

    return call


@pytest.fixture
def two(write, monkeypatch):
    """Two evaluations of sets as large as those of the paper, if the paper's were small."""
    for key, images in ((GOPRO, 3), (REDS, 2)):
        monkeypatch.setitem(published.SETS, key, replace(published.SETS[key], images=images))
    none = results("none", one_set([1.0, 1.5, -4.0], GOPRO, inference=TLC), one_set([0.5, 1.0], REDS))
    masked = results("map", one_set([2.0, 1.5, 1.0], GOPRO, inference=TLC), one_set([1.5, 1.0], REDS))
    return [write("none", none), write("map", masked)]


def test_markdown_is_printed_with_the_published_rows(samdeblur, two):
    shown = samdeblur("eval", "table", *two)
    assert (shown.code, shown.err) == (0, "")
    rows = [line.split("|")[1].strip() for line in shown.out.splitlines()[4:] if line.startswith("|")][:7]
    assert rows == [
        "w/o SAM (published)",
        "CAT (published)",
        "MAP (no dropout) (published)",
        "MAP + dropout (published)",
        "blurred input",
        "none",
        "map",
    ]
    assert "## Minus none" in shown.out
    assert "## Minus published" in shown.out


def test_a_set_that_is_only_called_like_one_of_the_paper_has_no_published_rows(samdeblur, write):
    shown = samdeblur("eval", "table", write("none", results("none", one_set([1.0] * 3, GOPRO, inference=TLC))))
    assert shown.code == 0
    assert "(published)" not in shown.out
    assert "Minus published" not in shown.out


def test_other_formats_are_printed_alone(samdeblur, two):
    latex = samdeblur("eval", "table", *two, "--format", "latex")
    assert (latex.code, latex.err) == (0, "")
    assert latex.out.count(r"\begin{table*}") == latex.out.count(r"\end{table*}") == 4
    table = samdeblur("eval", "table", *two, "--format", "csv")
    assert (table.code, table.err) == (0, "")
    read = list(csv.DictReader(io.StringIO(table.out)))
    ours = {(row["method"], row["set"]): row for row in read if row["kind"] == "run"}
    assert float(ours["none", "GoPro test"]["mcr"]) == pytest.approx(1 / 3, abs=1e-6)
    assert float(ours["map", "REDS val"]["psnr_minus_baseline"]) == pytest.approx(0.5)
    assert float(ours["map", "mean of sets"]["psnr"]) == pytest.approx((21.5 + 21.25) / 2)


def test_everything_is_written_into_a_folder(samdeblur, two, tmp_path):
    run = tmp_path / "runs/map"
    run.mkdir(parents=True)
    (run / CURVES).write_bytes(PNG)
    out = tmp_path / "deep/comparison"
    shown = samdeblur("eval", "table", *two, "--out", out, "--curves", run, "--format", "csv")
    assert shown.code == 0
    assert {"table.md", "table.csv", "table.tex", "report.html"} <= {path.name for path in out.iterdir()}
    assert (out / "table.csv").read_text() == shown.out
    assert str(out / "report.html") in shown.err
    assert r"\toprule" in (out / "table.tex").read_text()
    page = (out / "report.html").read_text()
    assert "Minus published, with 95% intervals" in page
    assert "training of map" in page


def test_the_same_command_prints_the_same_and_another_seed_does_not(samdeblur, two):
    command = ("eval", "table", *two, "--resamples", "200", "--format", "csv")
    assert samdeblur(*command).out == samdeblur(*command).out
    assert samdeblur(*command).out != samdeblur(*command, "--seed", "1").out


def test_options_choose_what_is_shown(samdeblur, two):
    assert "(published)" not in samdeblur("eval", "table", *two, "--no-published").out
    wang = samdeblur("eval", "table", *two, "--ssim", "wang").out
    assert "SSIM (wang)" in wang
    assert "0.960" not in wang
    assert "## Minus map" in samdeblur("eval", "table", *two, "--baseline", "map").out


def test_runs_of_one_method_are_told_apart_or_averaged(samdeblur, write):
    folders = [write(f"seed{seed}", results("map", one_set([seed, 1.0]), run=str(seed))) for seed in (1, 2)]
    each = samdeblur("eval", "table", *folders).out
    assert "map (seed1)" in each
    assert "map (seed2)" in each
    assert "map (mean of 2 runs)" in samdeblur("eval", "table", *folders, "--mean-runs").out


def test_results_are_named_by_their_folder_or_their_file(samdeblur, two):
    assert (
        samdeblur("eval", "table", *[folder / "results.json" for folder in two]).out
        == samdeblur("eval", "table", *two).out
    )


@pytest.mark.parametrize(
    ("second", "words"),
    [
        (results("map", one_set([1.0]), conventions=Conventions(align="ecc")), "align ecc instead of none"),
        (results("map", one_set([1.0]), conventions=Conventions(collapse_db=2.0)), "collapse_db 2.0 instead of 3.0"),
        (results("map", one_set([1.0, 2.0])), "toy test has different images: 1 and 2, and 0001 only in"),
        (results("map", UNSCORED), "it has no sharp images"),
    ],
)
def test_what_does_not_compare_is_refused_in_one_line(samdeblur, write, tmp_path, second, words):
    folders = [write("one", results("none", one_set([1.0]))), write("other", second)]
    refused = samdeblur("eval", "table", *folders, "--out", tmp_path / "out")
    assert (refused.code, refused.out) == (2, "")
    assert words in refused.error
    assert str(folders[1]) in refused.error
    assert not (tmp_path / "out").exists()


def test_aligned_results_are_never_put_beside_published_ones(samdeblur, write):
    folder = write("a", results("map", one_set([1.0], REALBLUR), conventions=Conventions(align="ecc")))
    shown = samdeblur("eval", "table", folder)
    assert (shown.code, "(published)" in shown.out) == (0, False)
    assert "align ecc instead of none" in shown.out
    refused = samdeblur("eval", "table", folder, "--published")
    assert refused.code == 2
    assert all(part in refused.error for part in (str(folder), "align ecc instead of none"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--baseline", "x"], "no row 'x'"),
        (["--published"], "none of the sets is one of the paper's"),
        (["--curves", "nowhere"], "nowhere"),
        (["--resamples", "1"], "1 is not in the range"),
        (["--format", "html"], "'html' is not one of"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(samdeblur, write, options, words):
    refused = samdeblur("eval", "table", write("a", results("map", one_set([1.0]))), *options)
    assert (refused.code, words in refused.error) == (2, True)


def test_results_given_twice_are_refused(samdeblur, two):
    refused = samdeblur("eval", "table", two[0], two[1], two[0] / "results.json")
    assert (refused.code, "given twice" in refused.error) == (2, True)


def test_results_that_are_not_there_or_broken_are_refused(samdeblur, two, tmp_path):
    assert "no such results" in samdeblur("eval", "table", tmp_path / "nowhere").error
    (two[0] / "results.json").write_text("{")
    refused = samdeblur("eval", "table", *two)
    assert (refused.code, str(two[0] / "results.json") in refused.error) == (2, True)


def test_a_set_without_sharp_images_does_not_stop_the_others(samdeblur, write):
    made = results("map", one_set([1.0]), UNSCORED)
    shown = samdeblur("eval", "table", write("a", made), write("b", replace(made, method="cat", sha256="")))
    assert shown.code == 0
    assert shown.out.count("holiday blurred is left out") == 2

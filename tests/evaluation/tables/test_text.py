from __future__ import annotations

import csv
import io
import math
import re
from dataclasses import replace

import pytest
from evaluations import UNSCORED, one_set, results, scores
from hypothesis import given
from hypothesis import strategies as st

from samdeblur.evaluation.results import Conventions, Inference, Score
from samdeblur.evaluation.tables.arrangement import NotComparable
from samdeblur.evaluation.tables.cells import Table
from samdeblur.evaluation.tables.comparison import Settings, compare
from samdeblur.evaluation.tables.formats import csv_text, latex_escaped, latex_text, markdown_text
from samdeblur.evaluation.tables.text import (
    as_markdown,
    comparison_tables,
    interval_tables,
    markdown_escaped,
    run_table,
    tables_of,
)

QUICK = Settings(resamples=200)
REDS = ("REDS", "val")
EVIL = 'a|b\\c \\\\ *b* `d` _e_ f_g <img src=x> [h](javascript:i) & 50% #1 {j} $k$ ^l ~m --n "q"\nnew\x1b[31m'


def three():
    """Three methods whose differences are the same on every image, so that intervals have no width."""
    return [
        results("none", one_set([1.0, 1.0, 1.0, -4.0])),
        results("map", one_set([2.0, 2.0, 2.0, 2.0], ssim=0.625)),
        results("cat", one_set([2.0, 2.0, 2.0, 2.004])),
    ]


def cells(markdown):
    """Tables of Markdown as rows of cells, without the rules."""
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return [row for row in rows if "".join(row).strip("-")]


def test_a_table_of_one_run_has_a_row_per_set():
    first = replace(one_set([1.0, -4.0]), psnr_step_0=18.0)
    second = one_set([2.0], ("toy", "ood"), "", Inference(512, 64, 256))
    table = run_table(results("map", first, second, UNSCORED))
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    assert rows[0] == {
        "set": "toy test (masks 11111111)",
        "images": "2",
        "PSNR blurred": "20.00",
        "PSNR": "18.50",
        "SSIM (wang)": "0.5000",
        "SSIM (nafnet)": "0.5800",
        "MCR (> 3 dB)": "50.00%",
        "step 0": "18.00",
        "inference": "whole images",
    }
    assert (rows[1]["set"], rows[1]["inference"], rows[1]["step 0"]) == ("toy ood", "TLC 256, tiles 512/64", "-")
    assert list(rows[2].values()) == ["holiday blurred", "2", *["-"] * 6, "whole images"]
    assert "step 0" not in run_table(results("map", second)).columns


def test_a_table_of_one_run_counts_what_the_guard_found():
    made = one_set([1.0, 2.0, -9.0], inference=Inference(guard="input"))
    first, second, third = made.scores
    scores = (first, replace(second, flags=("range",)), replace(third, flags=("range",), fallback="input"))
    plain = one_set([1.0], ("toy", "ood"))
    table = run_table(results("map", replace(made, scores=scores), plain))
    assert [row[table.columns.index("flagged")] for row in table.rows] == ["2, 1 replaced", "-"]
    assert "flagged" not in run_table(results("map", plain)).columns
    none_left = run_table(results("map", replace(made, scores=())))
    assert none_left.rows[0][none_left.columns.index("flagged")] == "0"


def test_a_table_of_one_run_shows_metrics_that_were_asked_for_and_the_threshold():
    made = one_set([1.0])
    more = replace(made, scores=(replace(made.scores[0], metrics={**made.scores[0].metrics, "lpips": 0.1234}),))
    table = run_table(results("map", more, made, conventions=Conventions(collapse_db=2.5)))
    assert [row[table.columns.index("lpips")] for row in table.rows] == ["0.1234", "-"]
    assert "MCR (> 2.5 dB)" in table.columns


def test_the_layout_is_that_of_table_1_with_the_best_of_ours_in_bold():
    table = tables_of(compare(three(), settings=QUICK))[0]
    assert table.columns == ["method", "toy test PSNR", "toy test SSIM (nafnet)", "toy test MCR"]
    assert table.rows == [
        ["blurred input", "20.00", "0.3750", "-"],
        ["none", "19.75", "0.5800", "25.00%"],
        ["cat", "22.00", "0.5800", "0.00%"],  # a tie as printed
        ["map", "22.00", "0.7050", "0.00%"],
    ]
    assert table.best == {(2, 1), (3, 1), (3, 2), (2, 3), (3, 3)}


def test_a_single_row_is_not_the_best_and_published_ones_never_are(small_paper):
    small_paper(1)
    assert tables_of(compare(three()[:1], settings=QUICK))[0].best == frozenset()
    runs = [results(method, one_set([gain], REDS)) for method, gain in (("none", 1.0), ("map", 2.0))]
    table = tables_of(compare(runs, settings=QUICK))[0]
    assert [row[0] for row in table.rows][:4] == [
        "w/o SAM (published)",
        "CAT (published)",
        "MAP (no dropout) (published)",
        "MAP + dropout (published)",
    ]
    assert table.rows[1][1:] == ["26.65", "0.865", "2.57%"]
    assert {table.rows[line][0] for line, _ in table.best} == {"map"}


def test_a_score_that_the_blurred_input_exceeds_is_not_the_best():
    runs = [results(method, one_set([gain] * 2)) for method, gain in (("none", -1.0), ("map", -0.5))]
    table = tables_of(compare(runs, settings=QUICK))[0]
    assert [row[:2] for row in table.rows] == [["blurred input", "20.00"], ["none", "19.00"], ["map", "19.50"]]
    assert table.best == frozenset()  # of PSNR; SSIM and the rate tie in all rows


def test_what_ties_in_all_rows_is_nobodys_best():
    runs = [results(method, one_set([gain] * 4)) for method, gain in (("none", 1.0), ("map", 2.0), ("cat", 2.0))]
    assert tables_of(compare(runs, settings=QUICK))[0].best == {(2, 1), (3, 1)}  # PSNR of two; rates are 0.00% in all


def test_one_image_is_shown_without_an_interval():
    runs = [results(method, one_set([gain])) for method, gain in (("none", 1.0), ("map", 2.0))]
    comparison = compare(runs, settings=QUICK)
    scored, over_none = interval_tables(comparison)
    assert scored.rows[1] == ["toy test", "map", "1", "22.00", "0.5800", "0.00%"]
    assert over_none.rows == [["toy test", "map", "1", "+1.00", "+0.0000", "+0.00"]]
    (mine,) = (row for row in csv.DictReader(io.StringIO(csv_text(comparison))) if row["label"] == "map")
    assert (mine["psnr"], mine["psnr_low"], mine["psnr_high"], mine["mcr_high"]) == ("22.0", "", "", "")
    assert "nan" not in csv_text(comparison) + latex_text(comparison)


def test_intervals_and_differences_have_tables_of_their_own(small_paper):
    small_paper(4)
    runs = [results(method, one_set([gain] * 4, REDS)) for method, gain in (("none", 1.0), ("map", 2.0))]
    scored, over_none, over_published = interval_tables(compare(runs, settings=QUICK))
    assert scored.columns == ["set", "method", "images", "PSNR", "SSIM (nafnet)", "MCR"]
    assert scored.rows[1] == [
        "REDS val",
        "map",
        "4",
        "22.00 [22.00, 22.00]",
        "0.5800 [0.5800, 0.5800]",
        "0.00% [0.00, 48.99]",
    ]
    assert over_none.title == "Minus none, with 95% intervals"
    assert over_none.columns[-1] == "MCR, points"
    assert over_none.rows == [
        ["REDS val", "map", "4", "+1.00 [+1.00, +1.00]", "+0.0000 [+0.0000, +0.0000]", "+0.00 [+0.00, +0.00]"]
    ]
    assert [row[:4] for row in over_published.rows] == [
        ["REDS val", "none", "4", "-4.97 [-4.97, -4.97]"],
        ["REDS val", "map", "4", "-4.81 [-4.81, -4.81]"],
    ]
    assert over_published.rows[1][4:] == ["-0.285 [-0.285, -0.285]", "-0.40 [-0.40, +48.59]"]


def test_a_mean_of_runs_shows_its_spread():
    runs = [results("map", one_set([gain] * 4), run=str(gain)) for gain in (1.0, 2.0)]
    (table,) = interval_tables(compare(runs, settings=replace(QUICK, mean_runs=True)))
    assert table.rows[0][1:4] == ["map (mean of 2 runs)", "4", "21.50 ± 0.71 [21.50, 21.50]"]


def test_the_convention_of_ssim_is_named_and_published_ssim_only_shown_beside_its_own(small_paper):
    small_paper(1)
    run = [results("map", one_set([1.0], REDS))]
    wang = compare(run, settings=replace(QUICK, ssim="wang"))
    table = tables_of(wang)[0]
    assert table.columns[2] == "REDS val SSIM (wang)"
    assert [row[2] for row in table.rows] == [*["-"] * 4, "0.2500", "0.5000"]
    for comparison, name in ((wang, "wang"), (compare(run, settings=QUICK), "nafnet")):
        for text in (markdown_text(comparison), latex_text(comparison)):
            assert f"SSIM ({name})" in text
            assert f"SSIM of the convention {name}" in text


def test_tables_for_a_page_leave_out_what_has_no_metrics():
    unscored = results("none", UNSCORED)
    assert comparison_tables([unscored]) == []
    table = comparison_tables([unscored, results("map", one_set([1.0]), UNSCORED)], settings=QUICK)[0]
    assert [row[0] for row in table.rows] == ["blurred input", "map"]
    assert table.columns[1] == "toy test PSNR"
    with pytest.raises(NotComparable):
        comparison_tables([results("none", one_set([1])), results("map", one_set([1, 2]))])


def test_tables_for_a_page_tell_runs_of_one_method_apart(tmp_path):
    runs = [results("map", one_set([1.0]), run=str(seed)) for seed in range(2)]
    table = comparison_tables(runs, [tmp_path / "one", tmp_path / "two"], QUICK)[0]
    assert [row[0] for row in table.rows] == ["blurred input", "map (one)", "map (two)"]


def test_markdown_as_a_whole():
    text = markdown_text(compare(three()[:2], settings=QUICK))
    assert text.startswith("""## PSNR / SSIM (nafnet) / MCR

| method        | toy test                           |
| ------------- | ---------------------------------- |
| blurred input | 20.00 / 0.3750 / -                 |
| none          | 19.75 / 0.5800 / 25.00%            |
| map           | **22.00** / **0.7050** / **0.00%** |

## Scores with 95% intervals

| set      | method | images | PSNR                 | SSIM (nafnet)           | MCR                  |
| -------- | ------ | ------ | -------------------- | ----------------------- | -------------------- |
""")
    assert "\n- Bold: the best of ours" in text
    assert "lose more than 3 dB" in text
    assert "200 bootstrap resamples of the images, seed 0" in text


def test_markdown_has_a_cell_per_cell_and_the_best_in_bold():
    table = Table("t", ["network", "PSNR"], [["a longer name", "1"], ["b|c", "20.00"]], frozenset({(1, 1)}))
    lines = as_markdown(table).splitlines()
    assert cells("\n".join(lines)) == [["network", "PSNR"], ["a longer name", "1"], [r"b\|c", "**20.00**"]]
    assert len({len(line) for line in lines}) == 1
    assert set(lines[1]) <= set("|- ")


def test_csv_has_every_number(small_paper):
    small_paper(2)
    runs = [
        results("none", one_set([1.0, -4.0], REDS, inference=Inference(tlc=256))),
        results("map", one_set([2.0, 2.0], REDS), one_set([1.0, 1.0])),
    ]
    comparison = compare(runs, ["results/a, b", "results/c"], QUICK)
    read = list(csv.DictReader(io.StringIO(csv_text(comparison))))
    by = {(row["label"], row["set"]): row for row in read}
    assert [row["label"] for row in read if row["set"] == "mean of sets"] == ["blurred input", "map"]
    ours = by["map", "REDS val"]
    assert (ours["kind"], ours["method"], ours["runs"], ours["results"]) == ("run", "map", "1", "results/c")
    assert (ours["dataset"], ours["split"], ours["recipe"], ours["images"]) == ("REDS", "val", "1" * 64, "2")
    assert (ours["align"], ours["collapse_db"], ours["resamples"], ours["seed"]) == ("none", "3.0", "200", "0")
    found = comparison.rows[-1].cells[0]
    for ending, estimates in (
        ("", found.scores),
        ("_minus_baseline", found.over_baseline),
        ("_minus_published", found.over_published),
    ):
        for metric, estimate in estimates.items():
            for end, value in (("", estimate.value), ("_low", estimate.low), ("_high", estimate.high)):
                assert float(ours[metric + ending + end]) == pytest.approx(value, abs=1e-6)
    assert by["none, TLC 256", "REDS val"]["results"] == "results/a, b"
    assert by["none, TLC 256", "REDS val"]["inference"] == "TLC 256"
    paper = by["CAT (published)", "REDS val"]
    assert (paper["kind"], paper["psnr"], paper["psnr_low"], paper["ssim_wang"]) == ("published", "26.65", "", "")
    assert (paper["ssim_nafnet"], paper["mcr"], paper["images"], paper["recipe"]) == ("0.865", "0.0257", "2", "")


def test_csv_does_not_depend_on_what_is_shown():
    run = [results("map", one_set([1.0], REDS))]
    assert csv_text(compare(run, settings=QUICK)) == csv_text(compare(run, settings=replace(QUICK, ssim="wang")))


def rows_of(latex):
    """Lines of tabulars as lists of cells."""
    lines = [line.removesuffix(r" \\") for line in latex.splitlines() if line.endswith(r" \\")]
    return [re.split(r"(?<!\\)&", line) for line in lines]


def test_latex_has_the_sets_above_their_metrics(small_paper):
    small_paper(2)
    runs = [
        results(method, one_set([gain] * 2, REDS), one_set([gain] * 2))
        for method, gain in (("none", 1.0), ("map", -4.0))
    ]
    text = latex_text(compare(runs, settings=QUICK))
    assert text.splitlines()[:13] == [
        r"% \usepackage{booktabs, adjustbox}",
        r"\begin{table*}[t]",
        r"\centering",
        r"\caption{Scores}",
        r"\begin{adjustbox}{max width=\textwidth}",
        r"\begin{tabular}{lcccccccccccc}",
        r"\toprule",
        r" & \multicolumn{3}{c}{REDS val} & \multicolumn{3}{c}{toy test} & \multicolumn{3}{c}{mean of sets} & "
        r"\multicolumn{3}{c}{mean of images} \\",
        r"\cmidrule(lr){2-4} \cmidrule(lr){5-7} \cmidrule(lr){8-10} \cmidrule(lr){11-13}",
        "Method" + r" & PSNR & SSIM (nafnet) & MCR" * 4 + r" \\",
        r"\midrule",
        r"w/o SAM (published) & 25.97 & 0.844 & 3.80\%" + " & --" * 9 + r" \\",
        r"CAT (published) & 26.65 & 0.865 & 2.57\%" + " & --" * 9 + r" \\",
    ]
    assert r"none & \textbf{21.00} & 0.5800 & \textbf{0.00\%}" in text
    assert "& $-$5.00 [$-$5.00, $-$5.00] &" in text


def assert_sound(latex):
    """What a compiler would stumble over: braces, environments, cells per row, characters with a meaning."""
    plain = re.sub(r"\\[{}$&#%_]", "", latex)
    assert plain.count("{") == plain.count("}")
    opened, closed = (re.findall(rf"\\{word}{{(\w+\*?)}}", latex) for word in ("begin", "end"))
    assert sorted(opened) == sorted(closed)
    for table in latex.split(r"\begin{table*}")[1:]:
        columns = re.search(r"\\begin{tabular}{([lcr]+)}", table)[1]
        for row in rows_of(table):
            spanned = sum(int((re.search(r"\\multicolumn{(\d+)}", cell) or [0, 1])[1]) for cell in row)
            assert spanned == len(columns)
            assert not row[0].startswith(("[", "*"))
    _, body = latex.split("\n", 1)  # the first line is a comment
    body = re.sub(r"\\.|\$-\$|\$\\pm\$", "", body)
    assert not set("#%_^~$<>|") & set(body)


def evil_comparison():
    made = one_set([1.0, 2.0], (EVIL, EVIL), recipe=EVIL)
    run = results(EVIL, made, one_set([1.0]), run=EVIL)
    starting = results("[x] *", made, one_set([2.0]))
    return compare([run, starting, replace(run, sha256="\ud800")], [EVIL, "b", "c"], QUICK)


def test_hostile_names_break_no_table():
    comparison = evil_comparison()
    markdown = markdown_text(comparison)
    for rows in (cells(part) for part in markdown.split("##")[1:]):
        assert len({len(row) for row in rows}) == 1
    assert "<img" not in markdown
    assert "](" not in markdown
    assert "\x1b" not in markdown + latex_text(comparison)
    assert_sound(latex_text(comparison))
    text = csv_text(comparison)
    text.encode()
    read = list(csv.reader(io.StringIO(text)))
    assert {len(row) for row in read} == {len(read[0])}
    assert sum("a|b\\c" in row[1] for row in read) == 8


def test_usual_tables_are_sound_latex():
    runs = [
        results(method, *(one_set([gain] * 3, key) for key in (REDS, ("GoPro", "test"))))
        for method, gain in (("none", 1.0), ("map-dropout", 2.0))
    ]
    assert_sound(latex_text(compare(runs, settings=QUICK)))


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("-", "--"),
        ("-0.25 [-1.00, +0.50]", "$-$0.25 [$-$1.00, +0.50]"),
        ("map-dropout", "map-dropout"),
        ("runs-2", "runs-2"),
        ("a--b", "a-{}-b"),
        ("50% of a_b & {c}", r"50\% of a\_b \& \{c\}"),
        ("a\\b~^", r"a\textbackslash{}b\textasciitilde{}\textasciicircum{}"),
        ("1 ± 2", r"1 $\pm$ 2"),
    ],
)
def test_latex_is_escaped(text, written):
    assert latex_escaped(text) == written


@given(st.text(alphabet=st.characters(codec="utf-8")))
def test_escaped_markdown_stays_in_its_cell(text):
    written = markdown_escaped(text)
    assert not re.search(r"(?<!\\)(?:\\\\)*\|", written)
    assert "\n" not in written
    assert "<" not in written


def test_perfect_images_never_make_a_table_say_nan_or_inf():
    perfect = replace(one_set([1]), scores=scores({"a": math.inf, "b": 20.0}, [0.0, math.inf]))
    comparison = compare([results("none", perfect), results("map", perfect)], settings=QUICK)
    for text in (markdown_text(comparison), latex_text(comparison), csv_text(comparison)):
        assert not re.search(r"\b(?:nan|inf)\b", text)
    assert run_table(results("none", perfect)).rows[0][2:4] == ["inf", "inf"]


def test_sets_without_some_metric_show_a_dash():
    made = replace(one_set([1]), scores=(Score("a", {"psnr_blurred": 20.0, "psnr": 21.0}),))
    comparison = compare([results("map", made)], settings=QUICK)
    assert tables_of(comparison)[0].rows[-1] == ["map", "21.00", "-", "0.00%"]

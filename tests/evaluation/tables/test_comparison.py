from __future__ import annotations

import math
import unicodedata
from dataclasses import replace

import numpy as np
import pytest
from evaluations import one_set, results, scores
from scipy import stats

from samdeblur.evaluation.results import Conventions, Inference, SetResult, Trained, read_results, write_results
from samdeblur.evaluation.tables import published
from samdeblur.evaluation.tables.arrangement import NotComparable
from samdeblur.evaluation.tables.comparison import MEANS, Settings, compare
from samdeblur.evaluation.tables.estimates import HIGHEST_DB
from samdeblur.pipeline.sources.layouts import LAYOUTS

GOPRO, REDS, TLC = ("GoPro", "test"), ("REDS", "val"), Inference(tlc=256)
QUICK = Settings(resamples=200)


def row(comparison, label):
    return next(row for row in comparison.rows if row.label == label)


def cell(comparison, label, place=0):
    return row(comparison, label).cells[place]


def noted(comparison, *words):
    return any(all(word in note for word in words) for note in comparison.notes)


def gains(seed, images=200, mean=1.0):
    return np.random.default_rng(seed).normal(mean, 2.0, images).tolist()


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (("0001", "0002"), ("0001.png", "0002.png")),  # as COCO names them
        (("0001.jpg", "0002"), ("0001", "0002.PNG")),
        (("nuit/été", "b"), (unicodedata.normalize("NFD", "nuit/été"), "b")),  # as macOS does
        (("été.png", "b"), (unicodedata.normalize("NFD", "été"), "b.jpeg")),
        (("a", "a.png"), ("a", "a.png")),
    ],
)
def test_images_are_joined_however_they_are_named(tmp_path, first, second):
    def of(method, names, dataset, won):
        made = SetResult(dataset, "test", "1" * 64, scores(dict(zip(names, (20.0, 30.0), strict=True)), won))
        return results(method, replace(made, scores=made.scores if method == "none" else made.scores[::-1]))

    apart = unicodedata.normalize("NFD", "Straße é")
    runs = [of("none", first, "Straße é", [1.0, 2.0]), of("map", second, apart, [3.0, 5.0])]
    for run in runs:  # as they come from two machines
        write_results(run, tmp_path / run.method)
    comparison = compare([read_results(tmp_path / name) for name in ("none", "map")], settings=QUICK)
    (column,) = comparison.columns
    assert column.images == first
    over = cell(comparison, "map").over_baseline["psnr"]
    assert (over.value, over.low, over.high) == pytest.approx((2.5, 2.0, 3.0))  # paired image by image


def test_published_sets_are_the_splits_of_our_layouts():
    known = {(layout.dataset, split): n for layout in LAYOUTS.values() for split, n in layout.published.items()}
    assert {key: of_paper.images for key, of_paper in published.SETS.items()}.items() <= known.items()


def test_published_rates_are_shares_of_whole_images():
    for of_paper in published.ROWS:
        for key, values in of_paper.scores.items():
            assert ("mcr" in values) == (key != GOPRO)
            collapsed = values.get("mcr", 0) * published.SETS[key].images
            assert abs(collapsed - round(collapsed)) < 0.5e-4 * published.SETS[key].images
    rates = [published.ROWS[1].scores["ReLoBlur", "test"]["mcr"] * 395, published.ROWS[1].scores[REDS]["mcr"] * 3000]
    assert [round(rate) for rate in rates] == [232, 77]


def test_numbers_are_means_over_images_with_the_intervals_of_scipy():
    rng = np.random.default_rng(0)
    won, ssim = gains(1), rng.uniform(0.6, 0.9, 200)
    scored = cell(compare([results("map", one_set(won, ssim=ssim))], settings=Settings(resamples=20_000)), "map").scores
    for metric, values in (("psnr", 20 + np.array(won)), ("ssim_wang", ssim), ("ssim_nafnet", ssim + 0.08)):
        reference = stats.bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", rng=rng)
        assert scored[metric].value == pytest.approx(values.mean())
        off = np.subtract((scored[metric].low, scored[metric].high), reference.confidence_interval)
        assert np.abs(off).max() < 0.1 * reference.standard_error
    collapsed = sum(gain < -3 for gain in won)
    wilson = stats.binomtest(collapsed, 200).proportion_ci(method="wilson")
    found = scored["mcr"]
    assert (found.value, found.low, found.high) == pytest.approx((collapsed / 200, wilson.low, wilson.high))


def test_differences_are_paired_whatever_the_order_of_the_images():
    one, other = gains(1), (np.array(gains(1)) + np.random.default_rng(2).normal(0.3, 0.2, 200)).tolist()
    none, masked = results("none", one_set(one)), one_set(other)
    shuffled = replace(masked, scores=masked.scores[::-1])
    comparison = compare([none, results("map", shuffled)], settings=Settings(resamples=20_000))
    found = cell(comparison, "map").over_baseline["psnr"]
    difference = np.subtract(other, one)
    reference = stats.bootstrap((difference,), np.mean, n_resamples=20_000, method="percentile", rng=0)
    assert comparison.baseline == "none"
    assert found.value == pytest.approx(difference.mean())
    off = np.subtract((found.low, found.high), reference.confidence_interval)
    assert np.abs(off).max() < 0.1 * reference.standard_error
    assert found.high - found.low < 0.2 * (
        cell(comparison, "map").scores["psnr"].high - cell(comparison, "map").scores["psnr"].low
    )
    assert cell(comparison, "none").over_baseline == {}


def test_differences_of_rates_are_paired_too():
    one, other = [-4.0] * 10 + [1.0] * 30, [-4.0] * 6 + [1.0] * 34
    found = cell(compare([results("none", one_set(one)), results("map", one_set(other))]), "map").over_baseline["mcr"]
    assert found.value == pytest.approx(-0.1)
    reference = stats.bootstrap((np.repeat([0.0, -1.0, 0.0], [6, 4, 30]),), np.mean, method="percentile", rng=0)
    assert (found.low, found.high) == pytest.approx(tuple(reference.confidence_interval), abs=0.011)


def test_the_baseline_is_none_or_the_first_row_or_what_is_asked_for():
    none, masked, other = (results(method, one_set(gains(seed))) for seed, method in enumerate(("none", "map", "net")))
    assert compare([other, masked, none], settings=QUICK).baseline == "none"
    assert compare([other, masked], settings=QUICK).baseline == "map"
    assert compare([other, masked], settings=replace(QUICK, baseline="net")).baseline == "net"
    assert compare([masked], settings=QUICK).baseline == ""
    with pytest.raises(NotComparable, match="no row 'x' to compare others with; there are: none, net"):
        compare([none, other], settings=replace(QUICK, baseline="x"))


def test_other_rows_and_sets_do_not_change_the_intervals_of_one():
    none, masked = results("none", one_set(gains(0))), results("map", one_set(gains(1)))
    alone = compare([masked], settings=QUICK)
    more = replace(masked, sets=(*masked.sets, one_set(gains(2), REDS)))
    beside = compare([none, more], settings=QUICK)
    assert cell(beside, "map", beside.names.index("toy test")).scores == cell(alone, "map").scores
    assert compare([masked], settings=QUICK) == alone
    assert cell(compare([masked], settings=replace(QUICK, seed=1)), "map").scores != cell(alone, "map").scores


def test_means_over_sets_and_over_images():
    few, many = gains(1, 50), gains(2, 150, 3.0)
    comparison = compare(
        [results("map", one_set(few), one_set(many, ("other", "test")))], settings=Settings(resamples=5000)
    )
    assert comparison.names == ("toy test", "other test", *MEANS)
    of_sets, of_images = (cell(comparison, "map", place) for place in (2, 3))
    assert of_sets.scores["psnr"].value == pytest.approx(20 + (np.mean(few) + np.mean(many)) / 2)
    assert of_images.scores["psnr"].value == pytest.approx(20 + np.mean(few + many))
    assert (of_sets.images, of_images.images) == (200, 200)
    for found, weights in ((of_sets, (0.5, 0.5)), (of_images, (0.25, 0.75))):
        error = math.hypot(*(w * stats.sem(values, ddof=0) for w, values in zip(weights, (few, many), strict=True)))
        width = found.scores["psnr"].high - found.scores["psnr"].low
        assert width == pytest.approx(2 * 1.96 * error, rel=0.06)


def test_rows_that_lack_a_set_have_no_mean():
    comparison = compare(
        [results("map", one_set([1]), one_set([2], REDS)), results("none", one_set([1]))], settings=QUICK
    )
    assert [found is None for found in row(comparison, "none").cells] == [True, False, True, True]
    assert None not in row(comparison, "map").cells


def test_runs_are_averaged_image_by_image_with_their_spread():
    won = [gains(seed) for seed in range(3)]
    runs = [results("map", one_set(of_run), run=str(seed)) for seed, of_run in enumerate(won)]
    comparison = compare(
        [*runs, results("none", one_set([0.0] * 200))], settings=Settings(resamples=20_000, mean_runs=True)
    )
    found = cell(comparison, "map (mean of 3 runs)")
    means = np.mean(won, axis=1)
    assert found.scores["psnr"].value == pytest.approx(20 + means.mean())
    assert found.spread["psnr"] == pytest.approx(means.std(ddof=1))
    reference = stats.bootstrap((np.mean(won, axis=0),), np.mean, n_resamples=20_000, method="percentile", rng=0)
    off = np.subtract(
        (found.over_baseline["psnr"].low, found.over_baseline["psnr"].high), reference.confidence_interval
    )
    assert np.abs(off).max() < 0.1 * reference.standard_error
    assert found.scores["mcr"].value == pytest.approx(np.mean(np.array(won) < -3))
    assert cell(comparison, "none").spread == {}


def test_perfect_results_count_as_100_db_and_are_named():
    before = {"a": 20.0, "b": 20.0, "c": math.inf, "d": math.inf, "e": 20.0}
    found = replace(one_set([1]), scores=scores(before, [math.inf, 1.0, 0.0, 0.0, 90.0]))
    spoiled = replace(
        found,
        scores=(
            *found.scores[:3],
            replace(found.scores[3], metrics={**found.scores[3].metrics, "psnr": 99.0}),
            found.scores[4],
        ),
    )
    comparison = compare([results("none", found), results("map", spoiled)], settings=QUICK)
    assert cell(comparison, "none").scores["psnr"].value == (100 + 21 + 100 + 100 + 100) / 5
    assert cell(comparison, "none").scores["mcr"].value == 0
    assert cell(comparison, "map").scores["mcr"].value == 0.2  # from perfect to 99 dB is a fall without end
    assert cell(comparison, "map").over_baseline["psnr"].value == pytest.approx(-0.2)
    assert noted(comparison, "toy test", f"{HIGHEST_DB:g} dB", "4 of 5 images")
    for line in comparison.rows:
        for estimate in line.cells[0].scores.values():
            assert math.isfinite(estimate.value + estimate.low + estimate.high)


def test_the_blurred_input_has_a_row():
    found = cell(compare([results("map", one_set(gains(0)))], settings=QUICK), "blurred input")
    assert found.scores["psnr"].value == 20
    assert "mcr" not in found.scores


def test_published_rows_stand_beside_sets_of_the_paper_alone(small_paper):
    small_paper(4)
    ours = results("map", one_set([1.0] * 4, REDS), one_set([2.0], ("REDS", "train")))
    comparison = compare([ours], settings=QUICK)
    paper = row(comparison, "MAP (no dropout) (published)")
    assert [found and found.scores["psnr"].value for found in paper.cells] == [26.81, None, None, None]
    found = cell(comparison, "map")
    assert found.over_published["psnr"].value == pytest.approx(21 - 26.81)
    assert found.over_published["ssim_nafnet"].value == pytest.approx(0.58 - 0.865)
    assert found.over_published["mcr"].high == pytest.approx(found.scores["mcr"].high - 0.004)
    assert "ssim_wang" not in found.over_published
    assert noted(comparison, published.SOURCE, "nafnet")


@pytest.mark.parametrize("images", [2999, 3001, 4])
def test_a_set_of_another_size_than_the_published_one_has_no_published_rows_beside_it(images):
    of_paper = compare([results("map", one_set([1.0] * 3000, REDS))], settings=QUICK)
    assert cell(of_paper, "map").over_published["psnr"].value == pytest.approx(21 - 26.81)
    ours = compare([results("map", one_set([1.0] * images, REDS))], settings=QUICK)
    assert {line.kind for line in ours.rows} == {"input", "run"}
    assert cell(ours, "map").over_published == {}
    assert noted(ours, "none of the sets is one of the paper's, in name and number", "REDS val 3,000")


def test_one_image_has_no_interval_and_neither_have_means_with_it():
    runs = [
        results(method, one_set([gain]), one_set([gain] * 9, REDS)) for method, gain in (("none", 1.0), ("map", 2.0))
    ]
    comparison = compare(runs, settings=QUICK)
    for place, certain in enumerate((False, True, False, False)):
        name = comparison.names[place]
        found = cell(comparison, "map", place)
        assert found.scores["psnr"].value == 22.0, name
        for estimate in (*found.scores.values(), *found.over_baseline.values()):
            assert (estimate.low is None, estimate.high is None) == (name != "REDS val",) * 2, (name, certain)


def test_steps_of_unfinished_runs_and_masks_of_another_kind_are_noted():
    seen = Trained(400, 1000, 600, "segment-anything 1a2b3c4d")
    found = replace(one_set([1.0] * 12), segmenter="superpixels 5e6f7a8b")
    comparison = compare(
        [replace(results("map", found), trained=seen), replace(results("none", found), trained=Trained(7, 7, 7))],
        settings=QUICK,
    )
    assert noted(
        comparison, "map: step 400 of 1,000, which is not finished: it stands at step 600", "none: step 7 of 7"
    )
    assert noted(
        comparison,
        "map, toy test: the masks are of superpixels 5e6f7a8b; the network was trained with "
        "masks of segment-anything 1a2b3c4d.",
    )
    assert not noted(comparison, "none, toy test: masks")
    assert not noted(comparison, "too few")
    assert row(comparison, "map").trained == (seen,)


def test_images_that_only_look_the_same_are_noted():
    one, other = (
        results("map", replace(found, scores=tuple(replace(s, pixels=pixels) for s in found.scores)), run=pixels)
        for found, pixels in ((one_set([1.0] * 3), "aa"), (one_set([2.0] * 3), "bb"))
    )
    assert noted(compare([one, other], ["a", "b"], QUICK), "toy test: 3 images with other pixels in b than in a")
    assert not noted(compare([one, replace(one, sha256="0" * 64)], ["a", "b"], QUICK), "other pixels")


def test_published_means_are_over_all_sets_of_the_paper():
    sets = (one_set([1.0] * of_paper.images, key) for key, of_paper in published.SETS.items())
    comparison = compare([results("cat", *sets)], settings=QUICK)
    of_sets, of_images = row(comparison, "CAT (published)").cells[-2:]
    assert of_sets.scores["psnr"].value == pytest.approx((32.88 + 26.55 + 26.65 + 29.77) / 4)
    weighted = 1111 * 32.88 + 980 * 26.55 + 3000 * 26.65 + 395 * 29.77
    assert of_images.scores["psnr"].value == pytest.approx(weighted / 5486)
    assert "mcr" not in of_sets.scores  # none is published for GoPro


@pytest.mark.parametrize(
    ("key", "inference", "words"),
    [
        (GOPRO, TLC, ()),
        (REDS, Inference(), ()),
        (GOPRO, Inference(), ("published numbers are with TLC 256", "map with whole images")),
        (GOPRO, Inference(tlc=96), ("map, TLC 96 with TLC 96",)),
        (REDS, TLC, ("published numbers are with whole images and no TLC", "with TLC 256")),
        (REDS, Inference(512, 64), ("with tiles 512/64",)),
    ],
)
def test_inference_other_than_that_of_the_paper_is_noted(key, inference, words, small_paper):
    small_paper(1)
    comparison = compare([results("map", one_set([1.0], key, inference=inference))], settings=QUICK)
    assert noted(comparison, "published numbers are with") == bool(words)
    assert noted(comparison, *words)


def test_inference_that_the_label_does_not_say_is_noted():
    ours = results("map", one_set([1.0], GOPRO, inference=TLC), one_set([1.0], REDS))
    assert noted(compare([ours], settings=QUICK), "GoPro test with TLC 256: map.")


def test_published_ssim_is_left_out_beside_wang(small_paper):
    small_paper(1)
    comparison = compare([results("map", one_set([1.0], REDS))], settings=replace(QUICK, ssim="wang"))
    assert noted(comparison, "Published SSIM is left out")
    assert noted(comparison, "SSIM of the convention wang")


@pytest.mark.parametrize("conventions", [Conventions(align="ecc"), Conventions(collapse_db=2.0)])
def test_published_rows_never_stand_beside_other_conventions(conventions, small_paper):
    small_paper(1)
    ours = results("map", one_set([1.0], ("RealBlur-J", "test")), conventions=conventions)
    comparison = compare([ours], settings=QUICK)
    assert not any(line.kind == "published" for line in comparison.rows)
    assert cell(comparison, "map").over_published == {}
    assert noted(comparison, "Published numbers cannot be compared with these", "instead of")
    with pytest.raises(
        NotComparable, match=r"^results/a: published numbers cannot be compared with these: .* instead of"
    ):
        compare([ours], ["results/a"], replace(QUICK, published=True))


def test_published_rows_are_refused_or_left_out_without_a_set_of_the_paper():
    ours = results("map", one_set([1.0]))
    assert noted(compare([ours], settings=QUICK), "none of the sets is one of the paper's")
    with pytest.raises(NotComparable, match="GoPro test 1,111, RealBlur-J test 980, REDS val 3,000, ReLoBlur test 395"):
        compare([ours], settings=replace(QUICK, published=True))
    without = compare([results("map", one_set([1.0], REDS))], settings=replace(QUICK, published=False))
    assert not any(line.kind == "published" for line in without.rows)
    assert not noted(without, "ublished")


def test_alignment_is_named():
    ours = results("map", one_set([1.0]), conventions=Conventions(align="ecc"))
    assert noted(compare([ours], settings=QUICK), "aligned with the sharp images: ecc")

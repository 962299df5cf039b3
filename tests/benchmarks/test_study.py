"""benchmarks/study: its plan, its intervals, and the whole at its smallest size."""

from __future__ import annotations

import importlib
import json
import runpy
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from places import ROOT
from scipy import stats

from samdeblur.models import AtomBatch, MAPUnit
from samdeblur.models.checkpoints.loading import BUNDLED_SAM
from samdeblur.storage import AtomMap

STUDY = ROOT / "benchmarks" / "study"


@pytest.fixture(scope="module")
def study():
    """The modules of the study."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(STUDY))
        names = ("plan", "intervals", "summary", "quality", "degrade", "axes", "priors")
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in names})


def run(*arguments):
    return subprocess.run([sys.executable, STUDY, *map(str, arguments)], capture_output=True, text=True, timeout=900)


@pytest.fixture(scope="module")
def command():
    """The command, in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(STUDY))
        return runpy.run_path(str(STUDY / "__main__.py"))["main"]


@pytest.mark.parametrize("size", ["small", "full"])
def test_the_plan_has_every_row_and_every_family(study, size):
    plan, size = study.plan, study.plan.SIZES[size]
    names = [variant.name for variant in plan.variants(size)]
    assert len(set(names)) == len({variant.place for variant in plan.variants(size)}) == len(names)
    assert {f"{method}, {masks}" for method in ("map", "map-dropout") for masks in size.masks} < set(names)
    assert {f"cat, {masks}" for masks in size.masks if masks != "true-displaced"} < set(names)
    settings = [variant.settings for variant in plan.variants(size)]
    assert {given["semantics"] for given in settings if "semantics" in given} == {"released"}
    assert {given["aggregate"] for given in settings if "aggregate" in given} == {"mean", "smallest"}
    assert len({given["mask_dropout"] for given in settings if "mask_dropout" in given}) > 1
    assert len({given["prior_channels"] for given in settings if "prior_channels" in given}) > 1
    assert size.seeds >= 5
    assert size.families[0] == "worlds"
    assert len(size.families) > 3
    assert len(list(plan.cells(size))) == sum(variant.seeds for variant in plan.variants(size))
    tested = {store.images for store in plan.test_sets(size, "true")}
    assert tested == set(plan.WORLDS)  # photographs have no true masks
    assert {store.masks for store in plan.stores(size)} == set(size.masks)


def test_networks_without_true_masks_are_tested_on_photographs_and_real_pairs(study, tmp_path):
    plan = study.plan
    size = replace(plan.SIZES["priors"], pairs=tmp_path)
    found = {masks: plan.test_sets(size, masks) for masks in ("", "true", "sam-12", "sam-12-alike")}
    assert [store.place for store in found["true"]] == ["worlds-true.zarr"]
    expected = ["worlds-sam-12.zarr", "photographs-sam-12.zarr", "pairs-sam-12.zarr"]
    assert [store.place for store in found["sam-12"]] == expected
    assert found["sam-12-alike"] == found["sam-12"]  # only the training differs
    assert [store.place for store in found[""]] == ["worlds-true.zarr", *expected[1:]]
    assert plan.Store("photographs", "sam-12").source(size) == ("sample", "all")
    assert plan.Store("pairs", "sam-12").source(size) == (str(tmp_path), "test")
    assert plan.MASKS["sam-12-alike"][-2:] == ("--predeblur", "none")
    both = next(row for row in plan.variants(size) if row.name == "map, sam-12-predeblurred")
    assert [store.place for store in plan.stores_of(both, size)] == [
        "train-sam-12.zarr",  # training images are pre-deblurred there already
        *(f"{images}-sam-12-predeblurred.zarr" for images in ("worlds", "photographs", "pairs")),
    ]


def test_other_sizes_of_network_have_the_same_rows_and_stores(study):
    plan = study.plan
    half, one, double = (plan.SIZES[name] for name in ("priors-half", "priors", "priors-double"))
    assert plan.variants(half) == plan.variants(one) == plan.variants(double)
    assert plan.stores(half) == plan.stores(one) == plan.stores(double)
    for name in ("width", "steps"):
        assert half.settings[name] < one.settings[name] < double.settings[name]


def test_the_plan_is_printed_and_nothing_else_is_done(command, tmp_path):
    done = CliRunner().invoke(command, ["--size", "small", "--out", str(tmp_path / "study"), "--plan"])
    assert done.exit_code == 0, done.output
    assert "134 trainings, up to 5 seeds of:" in done.output
    assert "map-dropout released misrotated, sam" in done.stdout
    assert not (tmp_path / "study").exists()


def test_checkpoints_are_for_the_priors(command, tmp_path):
    given = ["--size", "smoke", "--out", str(tmp_path), "--checkpoint", str(BUNDLED_SAM)]
    done = CliRunner().invoke(command, given)
    assert done.exit_code == 2
    assert "--size priors" in done.output


def test_checkpoints_of_one_name_are_refused(command, tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "sam.pth").touch()
    both = [word for folder in ("a", "b") for word in ("--checkpoint", str(tmp_path / folder / "sam.pth"))]
    done = CliRunner().invoke(command, ["--size", "priors-smoke", "--out", str(tmp_path / "out"), *both])
    assert done.exit_code == 2
    assert "two files of one name" in done.output


def test_a_row_that_is_not_there_is_refused_with_those_that_are(command, tmp_path):
    done = CliRunner().invoke(command, ["--size", "smoke", "--out", str(tmp_path), "--row", "map, samm"])
    assert done.exit_code == 2
    assert "no row 'map, samm', choose from none; cat, superpixels;" in done.output


@pytest.mark.parametrize("n", [3, 5])
@pytest.mark.parametrize(
    ("of_seeds", "of_images", "of_both"), [(1, 1, 1), (1, 0.2, 0.2), (0.2, 1, 1), (0, 0, 1)], ids=str
)
def test_intervals_hold_the_truth_as_often_as_they_say(study, of_seeds, of_images, of_both, n):
    rng = np.random.default_rng(0)
    held = []
    for _ in range(600):
        values = rng.normal(0, of_seeds, (n, 1)) + rng.normal(0, of_images, (1, 24)) + rng.normal(0, of_both, (n, 24))
        interval = study.intervals.of_means(values)
        held.append(interval.low <= 0 <= interval.high)
        assert held[-1] == (interval.p >= 0.05)
    assert np.mean(held) >= (0.93 if n == 5 else 0.9)  # 0.95, and chance; few seeds say less of their variance


def test_of_one_seed_intervals_are_students_over_images(study):
    values = np.array([[1.0, 2.0, 4.0, 8.0]])
    expected = stats.ttest_1samp(values[0], 0)
    interval = study.intervals.of_means(values)
    assert interval.mean == 3.75
    assert (interval.low, interval.high) == pytest.approx(tuple(expected.confidence_interval()))
    assert interval.p == pytest.approx(expected.pvalue)


def test_of_one_value_nothing_is_certain(study):
    assert study.intervals.of_means(np.array([[0.3]])).p == 1
    assert study.intervals.of_means(np.full((2, 2), 0.3)).p == 0


def test_rates_of_0_leave_doubt_as_their_images_do(study):
    few, many = (study.intervals.of_rates(np.zeros((5, images))) for images in (7, 70))
    assert few.mean == few.low == many.mean == 0
    assert 0.3 < few.high < 0.4
    assert 0.03 < many.high < 0.06
    alike = np.tile([1.0, 0, 0, 0], (5, 6))
    apart = np.stack([np.roll(row, seed) for seed, row in enumerate(alike)])
    alike_, apart_ = (study.intervals.of_rates(values) for values in (alike, apart))
    assert alike_.mean == apart_.mean == 0.25
    assert apart_.high - apart_.low < 0.7 * (alike_.high - alike_.low)  # seeds that fail alike say less


def test_p_values_are_corrected_as_holm_does(study):
    corrected = study.intervals.holm(np.array([0.01, 0.04, 0.03, 0.005]))
    assert corrected == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_differences_are_of_the_same_seed_and_image(study):
    rng = np.random.default_rng(1)
    base = rng.normal(25, 5, (5, 12))
    better = base + 0.1 + rng.normal(0, 0.01, base.shape)
    none, ours = (
        study.summary.Scores((0, 1, 2, 3, 4), psnr, psnr / 50, (psnr < 20).astype(float)) for psnr in (base, better)
    )
    rows = study.summary.summarise({"none": {"worlds": none}, "map": {"worlds": ours}})
    (row,) = (row for row in rows if row.variant == "map")
    assert row.over["psnr"].mean == pytest.approx(0.1, abs=0.01)
    assert 0 < row.over["psnr"].low < row.over["psnr"].high < 0.15
    assert row.psnr.high - row.psnr.low > 3
    assert row.p < 0.001
    assert row.psnr_of_seeds == pytest.approx(better.mean(axis=1), abs=1e-3)


def test_seeds_that_one_of_two_lacks_are_left_out(study):
    def scores(*seeds):
        values = np.array([[10.0 * seed, 10.0 * seed + 1] for seed in seeds])
        return study.summary.Scores(seeds, values, values, np.zeros_like(values))

    found = study.summary.differences(scores(0, 1, 4), scores(0, 4, 7))
    assert np.array_equal(found["psnr"], np.zeros((2, 2)))
    assert study.summary.differences(scores(0), scores(1)) == {}
    assert study.summary.summarise({"none": {"worlds": scores(0)}, "map": {"worlds": scores(1)}})[1].over == {}


def test_a_column_is_the_mean_over_families_scene_by_scene(study):
    sets = {
        name: study.summary.Scores((0, 1), *[np.full((2, 3), float(place))] * 3)
        for place, name in enumerate(study.plan.WORLDS)
    }
    found = {"none": sets, "map": {name: sets[name] for name in study.plan.WORLDS[:3]}}
    means = study.summary.pooled(found, study.summary.POOLED)
    assert means["none"]["worlds, other families"].psnr.tolist() == [[3.5] * 3] * 2
    assert set(means["map"]) == {"worlds"}  # the other column would be of other families than the baseline's


def shifts(masks, corner):
    return np.array([np.argwhere(mask)[0] for mask in masks]) - corner


def test_displaced_masks_are_the_true_ones_three_pixels_off(study):
    true = np.zeros((30, 24, 32), bool)
    true[:, 8:14, 10:20] = True
    moved = study.degrade.degraded(AtomMap.from_masks(true), "true-displaced", 0).to_masks()
    assert len(moved) == 30
    corners = shifts(moved, (8, 10))
    assert (moved.sum(axis=(1, 2)) == 60).all()
    assert np.abs(np.hypot(*corners.T) - 3).max() < 0.8
    assert len({tuple(corner) for corner in corners}) > 8


@pytest.mark.parametrize("amount", ["0.5", "1.5", "2"])
def test_masks_move_by_fractions_of_a_pixel_on_average(study, amount):
    true = np.zeros((2000, 16, 18), bool)
    true[:, 6:10, 6:12] = True
    rng = np.random.default_rng(1)
    moved = study.degrade.moved(true, rng, amount)
    assert (moved.sum(axis=(1, 2)) == 24).all()
    mean_along_axes = np.abs(shifts(moved, (6, 6))).mean()
    expected = float(amount) * 2 / np.pi  # of |cos| over a circle
    assert expected * 0.95 < mean_along_axes < expected * 1.05 + 0.01 or float(amount) > 1
    assert np.abs(shifts(moved, (6, 6))).max() <= np.ceil(float(amount))


def test_each_way_makes_masks_worse_as_it_says(study):
    square = np.zeros((1, 20, 20), bool)
    square[0, 5:15, 4:16] = True

    def way(kind, masks=square):
        return study.degrade.degraded(AtomMap.from_masks(masks), kind, 3).to_masks()

    inner, outer = way("true-eroded-1")[0], way("true-dilated-1")[0]
    assert inner[6:14, 5:15].all()
    assert inner.sum() == 80
    assert outer[4:16, 4:16].all()
    assert outer.sum() == 120 + 2 * (10 + 12)  # a cross of radius 1 leaves the corners
    assert (inner <= square[0]).all()
    assert (square[0] <= outer).all()
    smooth = way("true-smoothed-2")[0]
    assert not smooth[5, 4]
    assert smooth[10, 10]
    quarter = way("true-drawn-quarter")[0]
    assert (quarter.reshape(5, 4, 5, 4).any(axis=(1, 3)) == quarter.reshape(5, 4, 5, 4).all(axis=(1, 3))).all()
    parts = way("true-cut-4")
    assert len(parts) == 4
    assert (parts.sum(axis=0) == square[0]).all()
    assert parts.sum(axis=(1, 2)).max() <= 1.4 * parts.sum(axis=(1, 2)).min()


def test_masks_are_left_out_and_joined(study):
    many = np.zeros((400, 21, 21), bool)
    many[np.arange(400), np.arange(400) // 20, np.arange(400) % 20] = True
    masks = AtomMap.from_masks(many)
    assert 270 < study.degrade.degraded(masks, "true-without-0.25", 0).n_masks < 330
    joined = study.degrade.degraded(masks, "true-joined-4", 0).to_masks()
    assert len(joined) == 100
    assert (joined.sum(axis=0) == many.sum(axis=0)).all()
    assert study.degrade.degraded(masks, "true-without-0.25", 0) == study.degrade.degraded(
        masks, "true-without-0.25", 0
    )


def test_half_of_the_gain_lies_between_two_levels(study):
    def course(*gains):
        return [study.axes.Point("", float(level), (gain, gain, gain)) for level, gain in enumerate(gains)]

    assert study.axes.half(course(1.0, 0.75, 0.25, 0.0)) == 1.5
    assert study.axes.half(course(1.0, 0.9, 0.8)) is None
    named = [study.axes.Point("", name, (1.0, 1.0, 1.0)) for name in ("true", "worse")]
    assert study.axes.half(named) is None


def test_the_axes_end_with_tables_and_a_figure(study, tmp_path):
    done = run("--size", "axes-smoke", "--out", tmp_path, "--row", "map, true", "--row", "map, true-displaced")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "axes.json").read_text())
    assert set(found["gains"]) == {"map, true", "map, true-displaced"}
    text = (tmp_path / "axes.md").read_text()
    assert text.strip() in done.stdout
    assert "| trained with | true | true-displaced | superpixels |" in text
    assert min(cv2.imread(str(tmp_path / "axes.png")).shape[:2]) > 100


@pytest.fixture
def scene(random_masks):
    """An image, and masks of which some overlap."""
    masks = random_masks(np.random.default_rng(2), 9, 20, 24)
    return (
        torch.rand(1, 3, 20, 24, generator=torch.manual_seed(0)),
        masks,
        AtomBatch.collate([AtomMap.from_masks(masks)]),
    )


def test_soft_borders_leave_places_far_from_a_border_as_they_are(study):
    halves = np.zeros((1, 16, 40), bool)
    halves[:, :, 20:] = True
    batch, image = AtomBatch.collate([AtomMap.from_masks(halves)]), torch.rand(1, 3, 16, 40)
    soft = study.priors.SoftMAP(sigma=1.0)
    hard = MAPUnit()
    hard.load_state_dict(soft.state_dict())
    mine, theirs = soft(image, batch), hard(image, batch)
    assert torch.allclose(mine[..., :17], theirs[..., :17], atol=1e-5)
    assert torch.allclose(mine[..., 23:], theirs[..., 23:], atol=1e-5)
    assert torch.allclose(mine[..., 19] + mine[..., 20], theirs[..., 0] + theirs[..., -1], atol=1e-4)  # half and half


def test_the_smallest_mask_over_each_atom_is_found(study, scene):
    _, masks, batch = scene
    areas = masks.sum(axis=(1, 2))
    expected = np.where(masks, areas[:, None, None], np.inf).argmin(axis=0)
    expected[~masks.any(axis=0)] = len(masks)  # the background
    found = study.priors.smallest(batch)[batch.atoms[0].long()].numpy()
    assert (areas[np.minimum(found, 8)] == areas[np.minimum(expected, 8)])[expected < 9].all()
    assert ((found == 9) == (expected == 9)).all()


def test_equal_confidence_is_the_mean_and_a_doubtful_mask_counts_for_nothing(study, scene):
    image, masks, batch = scene
    unit = study.priors.ConfidentMAP()
    mean = MAPUnit(aggregate="mean")
    mean.load_state_dict(unit.state_dict())
    sure = batch._replace(mask_ids=torch.full_like(batch.mask_ids, 500))
    assert torch.allclose(unit(image, sure), mean(image, batch), atol=1e-6)
    doubtful = batch._replace(mask_ids=torch.where(torch.arange(len(masks)) == 0, 0, 1000))
    without = AtomBatch.collate([AtomMap.from_masks(masks[1:])])
    elsewhere = torch.from_numpy(masks[1:].any(axis=0) | ~masks[0])
    found, wanted = unit(image, doubtful)[0], mean(image, without)[0]
    assert (found - wanted)[:, elsewhere & torch.from_numpy(masks.any(axis=0))].abs().max() < 5e-3


def test_the_priors_end_with_tables_and_distilled_ones_need_no_masks(study, tmp_path):
    rows = ("map, true", "soft, true", "distilled, true", "confident, superpixels", "map shifted, true")
    early = tmp_path / "early.safetensors"
    early.write_bytes(BUNDLED_SAM.read_bytes())
    options = ("--seeds", 1, "--checkpoint", early, *(f"--row={row}" for row in rows))
    done = run("--size", "priors-smoke", "--out", tmp_path, *options)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "priors.json").read_text())
    assert set(found["over none"]) == set(rows)
    assert (tmp_path / "priors.md").read_text().strip() in done.stdout
    gains = found["tested with others"]["distilled, true"]
    assert len({gain["mean"] for gain in gains.values()}) == 1
    assert gains["true"]["mean"] != found["over none"]["map, true"]["mean"]
    gains = {masks: gain["mean"] for masks, gain in found["tested with others"]["map, true"].items()}
    assert len(set(gains.values())) > 1
    assert gains["sam-12-of-early"] != gains["true"]


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """The whole study at its smallest size: its folder, and what it said."""
    out = tmp_path_factory.mktemp("study") / "smoke"
    done = run("--size", "smoke", "--out", out)
    assert done.returncode == 0, done.stderr
    return out, done.stdout


def test_the_smallest_study_ends_with_tables_figures_and_images(study, smoke):
    out, said = smoke
    size = study.plan.SIZES["smoke"]
    names = {variant.name for variant in study.plan.variants(size)}
    rows = json.loads((out / "summary.json").read_text())
    assert {row["variant"] for row in rows} == names
    assert {row["images"] for row in rows} >= {*size.families, "worlds-no-masks", "worlds-other-masks"}
    assert {path.parents[1].name for path in (out / "in-practice").glob("*/*/results.json")} == {
        variant.place for variant in study.plan.variants(size) if variant.masks == "true"
    }
    assert {row["seeds"] for row in rows} == {size.seeds}
    assert all(row["psnr"]["low"] <= row["psnr"]["mean"] <= row["psnr"]["high"] for row in rows)
    text = (out / "summary.md").read_text()
    assert text.strip() in said
    assert "paper: ReLoBlur" in text
    for name in ("differences.png", "curves.png", "pictures-map-dropout-superpixels.jpg"):
        assert min(cv2.imread(str(out / name)).shape[:2]) > 100


def test_a_finished_study_is_not_done_again_and_one_that_lost_a_piece_does_that_piece_alone(smoke):
    out, said = smoke
    results = sorted((out / "results").glob("*/*/results.json"))
    before = {path: path.stat().st_mtime_ns for path in results}
    lost = results[3]
    text = json.loads(lost.read_text())
    lost.unlink()
    done = run("--size", "smoke", "--out", out)
    assert done.returncode == 0, done.stderr
    assert {path for path in results if path.stat().st_mtime_ns != before[path]} == {lost}
    again = json.loads(lost.read_text())
    assert [of_set["summary"] for of_set in again["sets"]] == [of_set["summary"] for of_set in text["sets"]]
    assert (out / "summary.md").read_text().strip() in said


def test_ranks_are_compared_over_sizes(tmp_path):
    for name, gains in {"half": (0.5, 0.1, -0.2), "one": (1.0, 0.2, -0.1), "double": (1.0, 1.2, -0.4)}.items():
        rows = {f"map, {n}": {"mean": g, "low": g, "high": g, "corrected p": 0.5} for n, g in enumerate(gains)}
        (tmp_path / name).mkdir()
        (tmp_path / name / "priors.json").write_text(json.dumps({"over none": rows | {name: rows["map, 0"]}}))
    files = [str(tmp_path / name / "priors.json") for name in ("half", "one", "double")]
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(STUDY))
        compare = runpy.run_path(str(STUDY / "sizes.py"))["main"]
    done = CliRunner().invoke(compare, files)
    assert done.exit_code == 0, done.output
    assert "| map, 2 | -0.20 [-0.20, -0.20] | -0.10 " in done.output
    assert "half, " in done.output
    assert "rank correlation 1.00 of 3 rows" in done.output
    assert "rank correlation 0.50 of 3 rows" in done.output
    assert "double |" in done.output
    assert CliRunner().invoke(compare, files[:1]).exit_code == 2

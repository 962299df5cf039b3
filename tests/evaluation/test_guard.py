from __future__ import annotations

import json
import math
from dataclasses import asdict

import numpy as np
import pytest
import torch
from places import ROOT
from scipy import ndimage
from torch.nn import functional as F

from samdeblur.evaluation.guard import LIMITS, ON_BY_DEFAULT, Findings, Limits, flags, inspect, rescue

FIGURES = ROOT / "benchmarks/results/guard.json"


def scene(seed=0, height=128, width=256):
    """A sharp image (1, 3, H, W) of overlapping boxes, and the same under a Gaussian blur of 2 pixels."""
    rng = np.random.default_rng(seed)
    sharp = np.full((3, height, width), 0.5)
    for _ in range(150):
        top, left = rng.integers(0, (height, width))
        high, wide = rng.integers(6, 40, 2)
        sharp[:, top : top + high, left : left + wide] = rng.uniform(0.1, 0.9, (3, 1, 1))
    blurred = ndimage.gaussian_filter(sharp, (0, 2, 2))
    return torch.from_numpy(sharp)[None].float(), torch.from_numpy(blurred)[None].float()


SHARP, BLURRED = scene()


def noise(sigma):
    return sigma * torch.randn(SHARP.shape, generator=torch.Generator().manual_seed(0))


def checkerboard(amplitude):
    y, x = torch.arange(SHARP.shape[-2])[:, None], torch.arange(SHARP.shape[-1])
    return amplitude * (1 - 2.0 * ((x + y) % 2))


def blob(values, amplitude):
    """A part of an image replaced, a sixteenth of its area."""
    other = values.clone()
    other[..., 32:64, 64:128] += amplitude
    return other


def flagged(output, image=BLURRED):
    (found,) = inspect(image, output)
    return flags(found)


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        pytest.param(BLURRED, (), id="identity"),
        pytest.param(SHARP, (), id="deblurred"),
        pytest.param(BLURRED + 0.6 * (SHARP - BLURRED), (), id="half deblurred"),
        pytest.param(BLURRED + noise(0.01), (), id="mild noise"),
        pytest.param(SHARP * 1.01 - 0.005, (), id="a little more contrast"),
        pytest.param(blob(SHARP, 2.0), ("range", "colour"), id="a bright blob"),
        pytest.param(blob(SHARP * 0.5 + 0.1, 0.6).clamp(0, 1), ("colour",), id="a blob inside the range"),
        pytest.param(BLURRED + checkerboard(0.35), ("range", "detail"), id="checkerboard"),
        pytest.param(BLURRED.clamp(0.3, 0.7) + checkerboard(0.25), ("detail",), id="checkerboard inside the range"),
        pytest.param(blob(BLURRED, 0) + torch.tensor([0.3, 0, 0])[:, None, None], ("range", "colour"), id="red cast"),
        pytest.param(torch.zeros_like(BLURRED), ("colour",), id="black"),
        pytest.param(1 - BLURRED, ("detail", "colour"), id="negative"),
        pytest.param(BLURRED * 255, ("range", "colour"), id="scaled to 255"),
    ],
)
def test_suspicious_results_are_flagged_and_others_are_not(output, expected):
    assert flagged(output) == expected


def test_findings_are_those_of_loops_over_cells_and_parts():
    output = SHARP * 1.4 - 0.2 + noise(0.05)
    image, raw = (x[0].double().numpy() for x in (BLURRED, output))
    change = np.clip(raw, 0, 1) - image

    def windows(values, high, wide):
        _, height, width = values.shape
        return [values[:, y : y + high, x : x + wide] for y in range(0, height, high) for x in range(0, width, wide)]

    def detail(values):
        return np.mean([cell.var(axis=(1, 2)).mean() for cell in windows(values, 16, 16)])

    there = detail(image) + (0.5 / 255) ** 2
    means = np.zeros_like(change)
    for cell, mean in zip(windows(change, 32, 32), windows(means, 32, 32), strict=True):
        mean += cell.mean(axis=(1, 2), keepdims=True)
    outside = max(np.square(part).mean() for part in windows(raw - np.clip(raw, 0, 1), 128 // 8, 256 // 8))
    moved = max(np.square(part).mean() for part in windows(means, 128 // 4, 256 // 4))
    (found,) = inspect(BLURRED, output)
    assert found.range == pytest.approx(math.sqrt(outside), rel=1e-4)
    assert found.detail == pytest.approx(math.sqrt(detail(change) / there), rel=1e-4)
    assert found.colour == pytest.approx(math.sqrt(moved / there), rel=1e-4)


def close(found, expected):
    return asdict(found) == pytest.approx(asdict(expected), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("size", [(128, 256), (101, 67), (17, 300), (5, 3), (1, 1)])
def test_mirrored_and_transposed_images_give_the_same(size):
    image, output = BLURRED[..., : size[0], : size[1]], (SHARP * 1.3 - 0.1)[..., : size[0], : size[1]]
    image, output = (F.pad(x, (0, size[1] - x.shape[-1], 0, 0)) for x in (image, output))
    (expected,) = inspect(image, output)
    for change in (lambda x: x.flip(-1), lambda x: x.flip(-2), lambda x: x.mT, lambda x: x.rot90(1, (-2, -1))):
        assert close(inspect(change(image), change(output))[0], expected)


def test_the_same_image_twice_as_large_gives_the_same_range():
    output = SHARP * 1.5 - 0.25
    larger = [F.interpolate(x, scale_factor=2, mode="nearest") for x in (BLURRED, output)]
    assert inspect(*larger)[0].range == pytest.approx(inspect(BLURRED, output)[0].range, rel=1e-4)


def test_an_image_is_judged_alone_whatever_else_is_in_the_batch():
    outputs = torch.cat([SHARP, torch.full_like(SHARP, math.nan), BLURRED + checkerboard(0.3), SHARP * 3])
    together = inspect(BLURRED.expand_as(outputs), outputs)
    assert len(together) == 4
    for found, output in zip(together, outputs, strict=True):
        assert close(found, inspect(BLURRED, output[None])[0])


def test_looking_changes_nothing_and_finds_the_same_again():
    output = (SHARP * 1.3).requires_grad_()
    image, before = BLURRED.clone(), output.detach().clone()
    first = inspect(image, output)
    assert inspect(image, output) == first
    assert torch.equal(image, BLURRED)
    assert torch.equal(output.detach(), before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_judged_alike(dtype):
    (expected,) = inspect(BLURRED, SHARP * 1.3)
    (found,) = inspect(BLURRED.to(dtype), (SHARP * 1.3).to(dtype))
    assert asdict(found) == pytest.approx(asdict(expected), rel=0.05)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_finds_what_a_cpu_finds():
    output = SHARP * 1.3 + noise(0.05)
    assert close(inspect(BLURRED.cuda(), output.cuda())[0], inspect(BLURRED, output)[0])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_single_value_that_is_not_finite_is_out_of_range(value):
    output = SHARP.clone()
    output[0, 1, 3, 4] = value
    (found,) = inspect(BLURRED, output)
    assert found.range == math.inf
    assert flags(found) == ("range",)
    assert asdict(found) | {"range": 0.0} == pytest.approx(asdict(inspect(BLURRED, SHARP)[0]), rel=1e-2)


def test_values_whose_square_is_not_finite_are_out_of_range():
    assert "range" in flagged(torch.full_like(BLURRED, 1e30))


def test_an_even_image_has_a_floor_of_detail():
    even = torch.full((1, 3, 64, 64), 0.5)
    assert flagged(even + 1 / 255 / 8, even) == ()
    assert flagged(even + checkerboard(0.02)[:64, :64], even) == ("detail",)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="must be"):
        inspect(BLURRED, SHARP[..., 1:])
    with pytest.raises(ValueError, match="must be"):
        inspect(BLURRED[0], SHARP[0])


def test_a_finding_is_suspicious_above_its_own_limit_only():
    limits = Limits(range=1, detail=2, colour=3)
    assert flags(Findings(1, 2, 3), limits) == ()
    assert flags(Findings(1.1, 2, 3), limits) == ("range",)
    assert flags(Findings(1, 2.1, 3), limits) == ("detail",)
    assert flags(Findings(9, 9, 9), limits) == ("range", "detail", "colour")


# What stands in place of a suspicious result

BAD = BLURRED * 255


def never():
    raise AssertionError("asked for in vain")


def test_a_result_that_passes_stands_and_nothing_else_is_computed():
    found = rescue(BLURRED, SHARP, [("tiles", never)])
    assert found.output is SHARP
    assert (found.flags, found.fallback) == ((), "")


def test_the_first_alternative_that_passes_stands_and_later_ones_are_not_computed():
    order = []

    def computed(name, output):
        return name, lambda: order.append(name) or output

    ways = [computed("tlc off", BAD), computed("tiles", SHARP), ("input", never)]
    found = rescue(BLURRED, BAD, ways)
    assert found.output is SHARP
    assert found.fallback == "tiles"
    assert found.flags == ("range", "colour")
    assert order == ["tlc off", "tiles"]


def test_the_input_always_passes():
    for image in (BLURRED, SHARP, torch.zeros(1, 3, 40, 30), torch.rand(1, 3, 40, 30)):
        bad = torch.full_like(image, math.nan)
        assert rescue(image, bad, [("tiles", lambda bad=bad: bad), ("input", lambda image=image: image)]).fallback == (
            "input"
        )


def test_where_no_alternative_passes_the_result_stands_with_its_flags():
    for ways in ([], [("tiles", lambda: BAD * 2)]):
        found = rescue(BLURRED, BAD, ways)
        assert found.output is BAD
        assert (found.flags, found.fallback) == (("range", "colour"), "")


def test_limits_can_be_others():
    assert rescue(BLURRED, SHARP, limits=Limits(detail=0.01)).flags == ("detail",)
    assert rescue(BLURRED, BAD, limits=Limits(math.inf, math.inf, math.inf)).flags == ()


# What docs/guard.md promises


def test_the_limits_are_those_that_were_measured():
    assert asdict(LIMITS) == json.loads(FIGURES.read_text())["limits"]


def test_the_guard_is_on_by_default_only_where_it_earned_it():
    test = json.loads(FIGURES.read_text())["test"]
    trained = test["trained"]["all"]
    earned = trained["recall"] >= 0.8 and all(
        group["false_alarms"] <= 0.05 for group in (trained, *test["ideal"].values())
    )
    assert earned == ON_BY_DEFAULT

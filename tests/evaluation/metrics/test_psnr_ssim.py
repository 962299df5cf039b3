from __future__ import annotations

import math
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import skimage.data
import torch
from scipy.ndimage import correlate1d
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from samdeblur.evaluation.metrics import psnr_ssim as metrics
from samdeblur.evaluation.metrics.mode_collapse import mode_collapse_rate
from samdeblur.evaluation.metrics.psnr_ssim import FIDELITY, compare, masked_psnr, masked_ssim, psnr, ssim
from samdeblur.evaluation.metrics.structural_similarity import OnGPU

# Heights around the strips that the CPU works in, and the borders that "wang" leaves out of them.
SHAPES = [
    (40, 33, 3),
    (11, 11, 3),
    (11, 60, 3),
    (32, 20, 3),
    (33, 20, 3),
    (37, 20, 3),
    (38, 20, 3),
    (64, 12, 3),
    (69, 12, 3),
]
PAIRS = os.environ.get("SAMDEBLUR_PAIRS", "")
GOPRO = "GOPR0384_11_00-000001.png"


def images(shape, noise=20, seed=0):
    """A smooth random image and a noisy one."""
    rng = np.random.default_rng(seed)
    base = np.cumsum(np.cumsum(rng.normal(0, 3, shape), axis=0), axis=1)
    base = 255 * (base - base.min()) / np.ptp(base)
    return tuple(np.clip(base + rng.normal(0, sigma, shape), 0, 255).astype(np.uint8) for sigma in (0, noise))


@pytest.mark.parametrize("noise", [1, 20, 100])
@pytest.mark.parametrize("shape", [*SHAPES, (1, 1, 3)])
def test_psnr_is_that_of_scikit_image(shape, noise):
    one, other = (
        images(shape, noise) if shape != (1, 1, 3) else (np.full(shape, 7, np.uint8), np.full(shape, 9, np.uint8))
    )
    assert psnr(one, other) == pytest.approx(peak_signal_noise_ratio(one, other, data_range=255), abs=1e-10)


def test_psnr_of_a_large_image_is_exact():
    black, white = np.zeros((1000, 4000, 3), np.uint8), np.full((1000, 4000, 3), 255, np.uint8)
    assert psnr(black, white) == 0
    white[:, ::2] = 0
    assert psnr(black, white) == pytest.approx(10 * math.log10(2), rel=1e-14)


def test_psnr_does_not_wrap_around():
    black, white = np.zeros((4, 4, 3), np.uint8), np.full((4, 4, 3), 255, np.uint8)
    assert psnr(black, white) == psnr(white, black) == 0


def photographs(name):
    """A photograph, and the same shaken."""
    sharp = np.ascontiguousarray(getattr(skimage.data, name)()[..., :3])
    return cv2.filter2D(sharp, -1, np.eye(9) / 9), sharp


def _ssim_of_scikit_image(one, other, **options):
    return structural_similarity(
        one, other, channel_axis=2, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, **options
    )


@pytest.mark.parametrize("noise", [1, 20, 100])
@pytest.mark.parametrize("shape", SHAPES)
def test_wang_ssim_is_that_of_scikit_image(shape, noise):
    one, other = images(shape, noise)
    assert ssim(one, other) == pytest.approx(_ssim_of_scikit_image(one, other, data_range=255), abs=1e-9)


@pytest.mark.parametrize("name", ["astronaut", "chelsea", "coffee"])
def test_photographs_score_as_with_the_independent_formulas(name):
    one, other = photographs(name)
    assert psnr(one, other) == pytest.approx(peak_signal_noise_ratio(other, one, data_range=255), rel=1e-12)
    assert ssim(one, other) == pytest.approx(_ssim_of_scikit_image(one, other, data_range=255), rel=1e-9)
    assert ssim(one, other, "nafnet") == pytest.approx(_ssim_of_volumes(one, other), rel=1e-9)


@pytest.mark.skipif(not PAIRS, reason=f"SAMDEBLUR_PAIRS names no folder with blur/{GOPRO} and sharp/{GOPRO}")
def test_the_first_pair_of_gopro_has_its_published_values():
    blurred, sharp = (cv2.imread(str(Path(PAIRS, side, GOPRO)))[..., ::-1] for side in ("blur", "sharp"))
    assert round(psnr(blurred, sharp), 4) == 24.05
    assert round(ssim(blurred, sharp, "nafnet"), 4) == 0.7963
    assert ssim(blurred, sharp) == pytest.approx(0.71695, abs=1e-5)


def _ssim_of_volumes(one, other):
    """SSIM with an 11x11x11 Gaussian over H, W and C, borders replicated."""
    weights = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    weights /= weights.sum()

    def smooth(volume):
        for axis in range(3):
            volume = correlate1d(volume, weights, axis, mode="nearest")
        return volume

    x, y = one.astype(float), other.astype(float)
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    covariance, mean_x, mean_y = smooth(x * y) - smooth(x) * smooth(y), smooth(x), smooth(y)
    variance_x, variance_y = smooth(x**2) - mean_x**2, smooth(y**2) - mean_y**2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return np.mean(luminance * (2 * covariance + c2) / (variance_x + variance_y + c2))


@pytest.mark.parametrize("noise", [1, 20, 100])
@pytest.mark.parametrize("shape", [*SHAPES, (5, 7, 3), (1, 1, 3)])
def test_nafnet_ssim_is_that_of_a_gaussian_over_the_volume(shape, noise):
    one, other = images((12, 12, 3), noise)
    one, other = images(shape, noise) if shape[0] > 7 else (one[: shape[0], : shape[1]], other[: shape[0], : shape[1]])
    assert ssim(one, other, "nafnet") == pytest.approx(_ssim_of_volumes(one, other), abs=1e-9)


def test_the_two_conventions_differ_on_colour():
    one, other = images((40, 33, 3))
    assert abs(ssim(one, other) - ssim(one, other, "nafnet")) > 0.01


def test_identical_images_are_perfect():
    one, _ = images((20, 20, 3))
    assert psnr(one, one) == math.inf
    assert ssim(one, one) == pytest.approx(1, abs=1e-12)
    assert ssim(one, one, "nafnet") == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize(("one", "other"), [(0, 0), (0, 255), (7, 9), (200, 200)])
@pytest.mark.parametrize("convention", ["wang", "nafnet"])
def test_constant_images_differ_in_luminance_alone(one, other, convention):
    c1 = (0.01 * 255) ** 2
    expected = (2 * one * other + c1) / (one**2 + other**2 + c1)
    images = (np.full((20, 24, 3), value, np.uint8) for value in (one, other))
    assert ssim(*images, convention) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("view", [np.s_[..., ::-1], np.s_[::-1], np.s_[:, ::-2], np.s_[3:, 4:]], ids=str)
def test_views_of_images_score_as_their_copies(view):
    one, other = (image[view] for image in images((40, 33, 3)))
    assert psnr(one, other) == psnr(one.copy(), other.copy())
    for convention in ("wang", "nafnet"):
        assert ssim(one, other, convention) == ssim(one.copy(), other.copy(), convention)


def blank(shape, kind=np.uint8):
    return np.zeros(shape, kind)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (blank((20, 20, 3)), blank((20, 21, 3))),
        (blank((20, 20, 3)), blank((1, 1, 3))),
        (blank((20, 20)), blank((20, 20))),
        (blank((20, 20, 1)), blank((20, 20, 1))),
        (blank((20, 20, 4)), blank((20, 20, 4))),
        (blank((1, 20, 20, 3)), blank((1, 20, 20, 3))),
        (blank((20, 20, 3), np.float32), blank((20, 20, 3), np.float32)),
        (blank((20, 20, 3)), blank((20, 20, 3), np.float64)),
        (blank((20, 20, 3), np.int16), blank((20, 20, 3))),
        (blank((0, 20, 3)), blank((0, 20, 3))),
    ],
    ids=lambda image: f"{image.shape} {image.dtype}",
)
@pytest.mark.parametrize("metric", [psnr, ssim, lambda a, b: ssim(a, b, "nafnet")], ids=["psnr", "wang", "nafnet"])
def test_images_of_other_shapes_and_types_are_refused(metric, one, other):
    with pytest.raises(ValueError, match="images must be"):
        metric(one, other)


def test_wang_ssim_needs_a_window_and_the_convention_a_known_name():
    with pytest.raises(ValueError, match="9x10 are smaller than the SSIM window of 11"):
        ssim(blank((10, 9, 3)), blank((10, 9, 3)))
    with pytest.raises(ValueError, match="choose wang or nafnet"):
        ssim(blank((20, 20, 3)), blank((20, 20, 3)), "matlab")


@pytest.mark.parametrize(
    ("blurred", "deblurred", "rate"),
    [
        ([30, 30, 30, 30], [26.9, 27.1, 30, 35], 0.25),
        ([30, 30], [27, 27], 0),  # exactly 3 dB is not more than 3 dB
        ([30], [20], 1),
        ([math.inf, math.inf], [math.inf, 40], 0.5),  # a perfect image that was spoiled, and one that was not
        ([30], [math.inf], 0),
    ],
)
def test_mode_collapse_is_losing_more_than_three_db(blurred, deblurred, rate):
    assert mode_collapse_rate(blurred, deblurred) == rate


def test_the_loss_that_counts_as_collapse_can_be_chosen():
    assert mode_collapse_rate([30, 30], [29.5, 26], threshold=0.4) == 1
    assert mode_collapse_rate([30, 30], [29.5, 26], 5) == 0


@pytest.mark.parametrize(
    ("blurred", "deblurred", "words"),
    [([], [], "got 0 and 0"), ([30, 30], [30], "got 2 and 1"), ([30, 31], [30, math.nan], "got nan")],
)
def test_a_rate_without_two_numbers_per_image_is_refused(blurred, deblurred, words):
    with pytest.raises(ValueError, match=words):
        mode_collapse_rate(blurred, deblurred)


# Batches


def batches(shape=(3, 70, 33, 3)):
    """Sharp, blurred and result, (B, H, W, 3) uint8; one of the results is perfect."""
    pairs = [images(shape[1:], 10 + 20 * number, number) for number in range(shape[0])]
    sharp, blurred = (np.stack(side) for side in zip(*pairs, strict=True))
    result = sharp // 2 + blurred // 2
    result[-1] = sharp[-1]
    return sharp, blurred, result


def scores(image, sharp):
    return {"psnr": psnr(image, sharp), **{f"ssim_{name}": ssim(image, sharp, name) for name in ("wang", "nafnet")}}


def as_tensors(*arrays, device="cpu"):
    return [torch.from_numpy(array).permute(0, 3, 1, 2).to(device) for array in arrays]


@pytest.mark.parametrize("layout", ["arrays", "tensors", "channels last"])
def test_a_batch_scores_as_its_images_one_by_one(layout):
    sharp, *others = arrays = batches()
    given = arrays if layout == "arrays" else as_tensors(*arrays)
    if layout == "tensors":
        given = [tensor.contiguous() for tensor in given]
    for image, found in zip(others, compare(*given), strict=True):
        assert list(found) == list(FIDELITY)
        for name, values in found.items():
            assert (values.shape, values.dtype) == ((3,), torch.float64)
            assert values.tolist() == [scores(one, of)[name] for one, of in zip(image, sharp, strict=True)]


@pytest.mark.parametrize("names", [["psnr"], ["ssim_nafnet", "psnr"], ["ssim_wang"], []], ids=str)
def test_the_metrics_that_are_asked_for_are_given_in_that_order(names):
    arrays = batches()
    for found, everything in zip(compare(*arrays, names=names), compare(*arrays), strict=True):
        assert list(found) == names
        assert all(torch.equal(found[name], everything[name]) for name in names)


def test_small_images_have_a_nafnet_ssim_and_psnr():
    sharp, blurred, _ = batches((2, 5, 9, 3))
    assert compare(sharp, blurred, names=["psnr", "ssim_nafnet"])[0]["ssim_nafnet"].shape == (2,)
    with pytest.raises(ValueError, match="9x5 are smaller than the SSIM window of 11"):
        compare(sharp, blurred)


@pytest.mark.parametrize("shape", [(3, 70, 33, 3), (1, 11, 11, 3), (2, 37, 20, 3)])
@pytest.mark.parametrize("strip", [None, 32, 7])
def test_a_gpu_computes_what_the_cpu_computes(shape, strip, monkeypatch):
    if strip:
        monkeypatch.setattr(OnGPU, "strip", lambda self, sharp: strip)
    arrays = batches(shape)
    sharp, *others = map(torch.from_numpy, arrays)
    found = metrics._on_gpu(sharp, others, FIDELITY)
    for row, expected in zip(found, compare(*arrays), strict=True):
        assert list(row) == list(FIDELITY)
        for name, values in row.items():
            torch.testing.assert_close(values, expected[name], rtol=1e-12, atol=1e-12)


def test_strips_of_a_gpu_hold_a_million_pixels_or_64_rows():
    assert OnGPU().strip(torch.empty(1, 720, 1280, 3, device="meta")) >= 720
    assert OnGPU().strip(torch.empty(64, 720, 1280, 3, device="meta")) == 64


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_finds_what_the_cpu_finds_and_keeps_it():
    arrays = batches((3, 200, 130, 3))
    for row, expected in zip(compare(*as_tensors(*arrays, device="cuda")), compare(*arrays), strict=True):
        for name, values in row.items():
            assert values.is_cuda
            torch.testing.assert_close(values.cpu(), expected[name], rtol=1e-12, atol=1e-12)


def some(*shape, dtype=torch.uint8):
    return torch.zeros(shape, dtype=dtype)


@pytest.mark.parametrize(
    ("one", "other", "words"),
    [
        (some(2, 3, 20, 20), some(2, 3, 20, 21), "one shape"),
        (some(2, 3, 20, 20), some(1, 3, 20, 20), "one shape"),
        (some(2, 3, 20, 20), some(2, 3, 20, 20, dtype=torch.float32), r"float32: clamp to \[0, 1\], times 255, round"),
        (some(2, 20, 20, 3), some(2, 20, 20, 3), r"\(B, 3, H, W\) tensors .* got \(2, 20, 20, 3\)"),
        (some(3, 20, 20), some(3, 20, 20), r"got \(3, 20, 20\)"),
        (some(2, 3, 0, 20), some(2, 3, 0, 20), r"got \(2, 3, 0, 20\)"),
        (blank((2, 3, 20, 20)), blank((2, 3, 20, 20)), r"\(B, H, W, 3\) arrays, got \(2, 3, 20, 20\)"),
        (blank((2, 20, 20, 3), np.float64), blank((2, 20, 20, 3)), "uint8, got float64"),
    ],
)
def test_batches_of_other_shapes_and_types_are_refused(one, other, words):
    with pytest.raises(ValueError, match=words):
        compare(one, other)


def test_an_unknown_metric_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match="unknown metric 'ssim_nafnt', did you mean ssim_nafnet"):
        compare(*batches(), names=["psnr", "ssim_nafnt"])


# Masks


def masked_pair():
    """Float images and a mask with a hole and a missing border."""
    one, other = (image.astype(np.float32) + 0.25 for image in images((60, 50, 3)))
    valid = np.ones((60, 50), bool)
    valid[20:30, 10:20] = valid[:8] = valid[:, 45:] = False
    return one, other, valid


@pytest.mark.parametrize("convention", ["wang", "nafnet"])
def test_with_all_pixels_valid_masked_metrics_are_the_usual_ones(convention):
    one, other = images((60, 50, 3))
    everything = np.ones((60, 50), bool)
    assert masked_psnr(one, other, everything) == pytest.approx(psnr(one, other), rel=1e-14)
    assert masked_ssim(one, other, everything, convention) == ssim(one, other, convention)


def test_masked_psnr_looks_at_valid_pixels_alone():
    one, other, valid = masked_pair()
    expected = 10 * math.log10(255**2 / np.mean((one[valid].astype(float) - other[valid]) ** 2))
    assert masked_psnr(one, other, valid) == pytest.approx(expected, rel=1e-12)
    one[~valid] = 1e6
    assert masked_psnr(one, other, valid) == pytest.approx(expected, rel=1e-12)


def test_masked_ssim_is_the_mean_of_the_map_of_masked_images():
    one, other, valid = masked_pair()
    black = [np.where(valid[..., None], image, 0).astype(float) for image in (one, other)]
    _, similarity = _ssim_of_scikit_image(*black, data_range=255, full=True)
    inner = np.zeros_like(valid)
    inner[5:-5, 5:-5] = valid[5:-5, 5:-5]
    assert masked_ssim(one, other, valid) == pytest.approx(similarity[inner].mean(), rel=1e-10)


def test_masks_that_leave_nothing_and_values_that_are_not_finite_are_refused():
    one, other, valid = masked_pair()
    with pytest.raises(ValueError, match="no pixel that counts is valid"):
        masked_psnr(one, other, np.zeros_like(valid))
    border = np.zeros_like(valid)
    border[:5] = True
    assert masked_ssim(one, other, border, "nafnet") < 1
    with pytest.raises(ValueError, match="no pixel that counts is valid"):
        masked_ssim(one, other, border)
    with pytest.raises(ValueError, match="bool mask"):
        masked_psnr(one, other, valid[:-1])
    with pytest.raises(ValueError, match="bool mask"):
        masked_ssim(one, other, valid.astype(np.uint8))
    one[30, 30, 0] = math.nan
    for metric in (masked_psnr, masked_ssim):
        with pytest.raises(ValueError, match="not finite"):
            metric(one, other, valid)

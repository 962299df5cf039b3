from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.ndimage import correlate1d
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from samdeblur.train.metrics import mode_collapse_rate, psnr, ssim

SHAPES = [(40, 33, 3), (11, 11, 3), (11, 60, 3)]


def images(shape, noise=20, seed=0):
    """A smooth random picture and a noisy one."""
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


def test_psnr_does_not_wrap_around():
    black, white = np.zeros((4, 4, 3), np.uint8), np.full((4, 4, 3), 255, np.uint8)
    assert psnr(black, white) == psnr(white, black) == 0


@pytest.mark.parametrize("noise", [1, 20, 100])
@pytest.mark.parametrize("shape", SHAPES)
def test_wang_ssim_is_that_of_scikit_image(shape, noise):
    one, other = images(shape, noise)
    theirs = structural_similarity(
        one, other, data_range=255, channel_axis=2, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    assert ssim(one, other) == pytest.approx(theirs, abs=1e-9)


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
    ],
    ids=lambda image: f"{image.shape} {image.dtype}",
)
@pytest.mark.parametrize("metric", [psnr, ssim, lambda a, b: ssim(a, b, "nafnet")], ids=["psnr", "wang", "nafnet"])
def test_pictures_of_other_shapes_and_types_are_refused(metric, one, other):
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

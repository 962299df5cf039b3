"""PSNR, SSIM in the two conventions in use, and the mode collapse rate."""

from __future__ import annotations

from typing import Literal

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

COLLAPSE_DB = 3.0
_RADIUS = 5
_KERNEL = cv2.getGaussianKernel(2 * _RADIUS + 1, 1.5, cv2.CV_64F)
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2

Picture = NDArray[np.uint8]


def psnr(image: Picture, reference: Picture) -> float:
    """Peak signal-to-noise ratio, dB, over all pixels and channels of two (H, W, 3) uint8 images; inf if equal."""
    _check(image, reference)
    error = np.mean((image.astype(np.float64) - reference) ** 2)
    return float(10 * np.log10(255**2 / error)) if error else float("inf")


def ssim(image: Picture, reference: Picture, convention: Literal["wang", "nafnet"] = "wang") -> float:
    """Structural similarity of two (H, W, 3) uint8 images, K1 = 0.01, K2 = 0.03, Gaussian of sigma 1.5 over 11 pixels.

    Args:
        convention: "wang" is the usual one (Wang et al. 2004): per channel, only windows inside the image, averaged.
            "nafnet" is what NAFNet's evaluation computes and papers of its line report: the image as a volume
            H x W x C, an 11x11x11 Gaussian, borders replicated on every axis. It reads about 0.08 higher.

    Raises:
        ValueError: the images differ in shape, or are smaller than a window.
    """
    _check(image, reference)
    if convention not in ("wang", "nafnet"):
        raise ValueError(f"unknown SSIM convention {convention!r}, choose wang or nafnet")
    smooth = _smooth_plane if convention == "wang" else _smooth_volume
    x, y = image.astype(np.float64), reference.astype(np.float64)
    mean_x, mean_y = smooth(x), smooth(y)
    variances = smooth(x * x) - mean_x**2 + smooth(y * y) - mean_y**2
    covariance = smooth(x * y) - mean_x * mean_y
    similarity = (2 * mean_x * mean_y + _C1) * (2 * covariance + _C2)
    similarity /= (mean_x**2 + mean_y**2 + _C1) * (variances + _C2)
    return float(similarity.mean())


def mode_collapse_rate(blurred: ArrayLike, deblurred: ArrayLike) -> float:
    """Share of images that deblurring makes worse by more than 3 dB (arXiv 2309.02270, section 3).

    Args:
        blurred, deblurred: PSNR against the sharp image, one value per image.
    """
    # An image that is perfect before and after has lost nothing, though inf - inf is not a number.
    with np.errstate(invalid="ignore"):
        loss = np.asarray(blurred, float) - np.asarray(deblurred, float)
    return float(np.mean(loss > COLLAPSE_DB))


def _check(image: Picture, reference: Picture) -> None:
    if image.shape != reference.shape or image.shape[2:] != (3,):
        raise ValueError(f"images must be (H, W, 3) of one shape, got {image.shape} and {reference.shape}")
    if image.dtype != np.uint8 or reference.dtype != np.uint8:
        raise ValueError(f"images must be uint8, got {image.dtype} and {reference.dtype}")


def _smooth_plane(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Gaussian over H and W, windows inside the image only."""
    if min(x.shape[:2]) <= 2 * _RADIUS:
        raise ValueError(f"images of {x.shape[1]}x{x.shape[0]} are smaller than the SSIM window of 11 pixels")
    return cv2.sepFilter2D(x, -1, _KERNEL, _KERNEL)[_RADIUS:-_RADIUS, _RADIUS:-_RADIUS]


def _smooth_volume(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Gaussian over H, W and C with replicated borders; over the few channels it is a small matrix."""
    channels = x.shape[2]
    reach = np.clip(np.arange(-_RADIUS, _RADIUS + 1) + np.arange(channels)[:, None], 0, channels - 1)
    mixing = np.zeros((channels, channels))
    np.add.at(mixing, (np.arange(channels)[:, None], reach), _KERNEL.ravel())
    return cv2.sepFilter2D(x, -1, _KERNEL, _KERNEL, borderType=cv2.BORDER_REPLICATE) @ mixing.T

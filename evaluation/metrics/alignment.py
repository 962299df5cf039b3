"""Aligning a result with its sharp image before they are compared: `--align ecc`, for RealBlur.

Blurred and sharp images of RealBlur come from two cameras and do not quite match in place and gain, so results on it
are compared after a homography and a gain were taken out of them. What is done here, in this order:

1. One gain for all channels, by least squares over all pixels of the images as they are: sum(sharp * result) /
   sum(result^2); a little low where they are out of place. The result is multiplied by it, and neither clipped nor
   rounded from here on.
2. A homography that takes pixels of the sharp image to those of the result, by maximising the enhanced correlation
   coefficient (Evangelidis and Psarakis 2008; `cv2.findTransformECC`) of the grey images, smoothed by a Gaussian of 5
   pixels, from the identity on, 100 steps or until the coefficient changes by less than 1e-8.
3. The result is warped onto the sharp image with cubic interpolation, its border reflected. Valid are the pixels whose
   nearest source lies inside the result.
4. PSNR is that of valid pixels. For SSIM both images are black elsewhere, and it is averaged over valid pixels.

ECC changes neither with gain nor with offset, so the gain decides nothing in step 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from samdeblur.evaluation.metrics.psnr_ssim import Convention, ImageArray, check_images, masked_psnr, masked_ssim

STEPS, TOLERANCE, SMOOTHING = 100, 1e-8, 5
LEAST_VALID = 0.5  # share of the pixels; a homography that leaves fewer has not found the scene


@dataclass(frozen=True)
class Warp:
    """How a result differs from the sharp image.

    Attributes:
        gain: what the result is multiplied by.
        homography: (3, 3) float32, takes (x, y, 1) of the sharp image to the result, in pixels.
    """

    gain: float
    homography: NDArray[np.float32]


class Alignment(NamedTuple):
    """A result on the pixels of its sharp image.

    Attributes:
        image: (H, W, 3) float32, in about 0..255.
        valid: (H, W) bool, the pixels to compare.
        found: whether it was aligned. If not, `image` is the result as it was, and all pixels are valid.
    """

    image: NDArray[np.float32]
    valid: NDArray[np.bool_]
    found: bool


@dataclass(frozen=True)
class AlignedScores:
    """PSNR in dB and SSIM in both conventions over valid pixels; of the images as they are if `found` is false."""

    psnr: float
    ssim_wang: float
    ssim_nafnet: float
    found: bool


def find_warp(result: ImageArray, sharp: ImageArray) -> Warp | None:
    """Gain and homography between two (H, W, 3) uint8 images; None where ECC does not converge.

    Raises:
        ValueError: the images differ in shape, or are not (H, W, 3) uint8.
    """
    check_images(result, sharp)
    energy = float(np.sum(np.square(result, dtype=np.float64)))
    if energy == 0:
        return None
    gain = float(np.sum(np.multiply(sharp, result, dtype=np.float64))) / energy
    template, moving = (cv2.cvtColor(image.astype(np.float32), cv2.COLOR_RGB2GRAY) for image in (sharp, result))
    criteria = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, STEPS, TOLERANCE)
    start = np.eye(3, dtype=np.float32)
    whole: Any = None  # which OpenCV's own types forbid
    try:
        _, homography = cv2.findTransformECC(template, moving, start, cv2.MOTION_HOMOGRAPHY, criteria, whole, SMOOTHING)
    except cv2.error:
        return None
    return Warp(gain, homography) if np.isfinite(homography).all() else None


def align(result: ImageArray, sharp: ImageArray) -> Alignment:
    """Bring a result, (H, W, 3) uint8, to the place and the gain of its sharp image, as the head of this file says.

    Where ECC does not converge, or leaves fewer than half of the pixels, the result stays as it is, and `found` is
    false.

    Raises:
        ValueError: the images differ in shape, or are not (H, W, 3) uint8.
    """
    warp = find_warp(result, sharp)
    if warp is not None:
        size = sharp.shape[1::-1]
        moved = cv2.warpPerspective(
            (result * warp.gain).astype(np.float32),
            warp.homography,
            size,
            flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REFLECT,
        )
        inside = np.ones(sharp.shape[:2], np.uint8)
        nearest = cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP
        valid = cv2.warpPerspective(inside, warp.homography, size, flags=nearest).astype(bool)
        if valid.mean() >= LEAST_VALID and np.isfinite(moved).all():
            return Alignment(moved, valid, True)
    return Alignment(result.astype(np.float32), np.ones(result.shape[:2], bool), False)


def aligned_scores(result: ImageArray, sharp: ImageArray) -> AlignedScores:
    """PSNR and SSIM of a result, (H, W, 3) uint8, after `align`, against its sharp image.

    Raises:
        ValueError: the images differ in shape, are not (H, W, 3) uint8, or are smaller than 11 pixels.
    """
    image, valid, found = align(result, sharp)

    def similarity(convention: Convention) -> float:
        return masked_ssim(image, sharp, valid, convention)

    return AlignedScores(masked_psnr(image, sharp, valid), similarity("wang"), similarity("nafnet"), found)

"""The mode collapse rate of arXiv 2309.02270: how often deblurring makes an image much worse."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

COLLAPSE_DB = 3.0


def mode_collapse_rate(blurred: ArrayLike, deblurred: ArrayLike, threshold: float = COLLAPSE_DB) -> float:
    """Share of images that deblurring makes worse by more than 3 dB (arXiv 2309.02270, section 3).

    Args:
        blurred: PSNR of the input against the sharp image, dB, one value per image.
        deblurred: likewise of the result.
        threshold: dB that may be lost.

    Raises:
        ValueError: no images, not as many of one as of the other, or a PSNR that is not a number.
    """
    before, after = np.asarray(blurred, float), np.asarray(deblurred, float)
    if before.shape != after.shape or before.size == 0:
        raise ValueError(f"the mode collapse rate needs two PSNR per image, got {before.size} and {after.size}")
    if np.isnan(before).any() or np.isnan(after).any():
        raise ValueError("the mode collapse rate needs PSNR that are numbers, got nan")
    # An image that is perfect before and after has lost nothing, though inf - inf is not a number.
    with np.errstate(invalid="ignore"):
        return float(np.mean(before - after > threshold))

"""Structural similarity of images, in float64, on a CPU or a GPU.

On a CPU NumPy and OpenCV work strip by strip, so that a strip stays in the cache. On a GPU sums of shifted images take
the place of OpenCV's filter: convolutions in float64 are slow there, and differ between libraries. The two agree to
1e-12.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

RADIUS = 5
KERNEL = cv2.getGaussianKernel(2 * RADIUS + 1, 1.5, cv2.CV_64F)
BORDERS = {"wang": RADIUS, "nafnet": 0}  # pixels at each border of an image that a convention leaves out
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


class ArrayMath(Protocol):
    """What `similarities` does with (..., rows, W, 3) images on one kind of device."""

    def strip(self, sharp: Any) -> int:
        """Rows to take at once."""

    def pad(self, image: Any) -> Any:
        """The first and the last row five times more."""

    def double(self, image: Any) -> Any:
        """The same in float64."""

    def smooth(self, image: Any) -> Any:
        """Gaussian over columns, their ends replicated, and over rows, of which the five at either end are used up."""

    def mix(self, image: Any) -> Any:
        """Gaussian over the channels, their ends replicated."""


def similarities(
    sharp: Any,
    images: Sequence[Any],
    conventions: Sequence[str],
    of: ArrayMath,
    valid: NDArray[np.bool_] | None = None,
) -> list[dict[str, Any]]:
    """Mean SSIM of each of the images against the sharp one, by convention ("wang", "nafnet": see `metrics.ssim`).

    Both conventions need the same local means, those of the sharp image once for all images. "wang" counts the windows
    inside the image; for "nafnet" the means are mixed over the channels.

    Args:
        sharp, images: (H, W, 3) arrays or (B, H, W, 3) tensors, in 0..255, as `of` takes them.
        valid: (H, W), the pixels to count; None for all. Arrays only.

    Returns:
        A dictionary for each image: one value, or a (B,) tensor.
    """
    height, width = sharp.shape[-3:-1]
    totals: list[dict[str, Any]] = [dict.fromkeys(conventions, 0.0) for _ in images]
    strip = of.strip(sharp)
    padded_sharp, *padded = [of.pad(image) for image in (sharp, *images)]
    for top in range(0, height, strip):
        bottom = min(top + strip, height)
        rows = (..., slice(top, bottom + 2 * RADIUS), slice(None), slice(None))
        y = of.double(padded_sharp[rows])
        y_squared = y * y
        mean_y = of.smooth(y)
        mixed_y = of.mix(mean_y) if "nafnet" in conventions else None
        for image, total in zip(padded, totals, strict=True):
            x = of.double(image[rows])
            means = of.smooth(x), of.smooth(x * x + y_squared), of.smooth(2 * x * y)
            for convention in conventions:
                if convention == "wang":
                    similarity = _similarity(mean_y, *means)
                else:
                    similarity = _similarity(mixed_y, *map(of.mix, means))
                if valid is not None:
                    similarity *= valid[top:bottom, :, None]
                border = BORDERS[convention]
                first, last = max(border - top, 0), max(min(bottom, height - border) - top, 0)
                counted = similarity[..., first:last, border : width - border, :]
                total[convention] = total[convention] + counted.sum((-3, -2, -1))
    for convention in conventions:
        border = BORDERS[convention]
        pixels = (height - 2 * border) * (width - 2 * border)
        if valid is not None:
            pixels = int(valid[border : height - border, border : width - border].sum())
        for total in totals:
            total[convention] = total[convention] / (3 * pixels)
    return totals


def _similarity(mean_y: Any, mean_x: Any, squares: Any, products: Any) -> Any:
    """Wang et al. 2004, equation 13, from the means of y, x, x^2 + y^2 and 2 x y; in place where it can be."""
    means = mean_x * mean_y
    means *= 2
    numerator = products - means
    numerator += C2
    means += C1
    numerator *= means
    powers = mean_x * mean_x
    powers += mean_y * mean_y
    denominator = squares - powers
    denominator += C2
    powers += C1
    denominator *= powers
    numerator /= denominator
    return numerator


def _mixing() -> NDArray[np.float64]:
    """(3, 3): the Gaussian along three channels whose ends are replicated."""
    reach = np.clip(np.arange(-RADIUS, RADIUS + 1) + np.arange(3)[:, None], 0, 2)
    mixing = np.zeros((3, 3))
    np.add.at(mixing, (np.arange(3)[:, None], reach), KERNEL.ravel())
    return mixing


MIXING = _mixing()


class OnCPU:
    """(H, W, 3) arrays."""

    def strip(self, sharp: NDArray[Any]) -> int:
        return 32

    def pad(self, image: NDArray[Any]) -> NDArray[Any]:
        return cv2.copyMakeBorder(image, RADIUS, RADIUS, 0, 0, cv2.BORDER_REPLICATE)

    def double(self, image: NDArray[Any]) -> NDArray[np.float64]:
        return image.astype(np.float64)

    def smooth(self, image: NDArray[np.float64]) -> NDArray[np.float64]:
        return cv2.sepFilter2D(image, -1, KERNEL, KERNEL, borderType=cv2.BORDER_REPLICATE)[RADIUS:-RADIUS]

    def mix(self, image: NDArray[np.float64]) -> NDArray[np.float64]:
        return cv2.transform(image, MIXING)


class OnGPU:
    """(B, H, W, 3) tensors of a device that has float64."""

    def strip(self, sharp: Tensor) -> int:
        return max(64, 2**20 // (sharp.shape[0] * sharp.shape[2]))

    def pad(self, image: Tensor) -> Tensor:
        return torch.cat([image[:, :1]] * RADIUS + [image] + [image[:, -1:]] * RADIUS, 1)

    def double(self, image: Tensor) -> Tensor:
        return image.double()

    def smooth(self, image: Tensor) -> Tensor:
        weights = KERNEL.ravel().tolist()
        rows, columns = image.shape[1] - 2 * RADIUS, image.shape[2]
        down = weights[0] * image[:, :rows]
        for offset, weight in enumerate(weights[1:], 1):
            down.add_(image[:, offset : offset + rows], alpha=weight)
        down = F.pad(down, (0, 0, RADIUS, RADIUS), mode="replicate")
        across = weights[0] * down[:, :, :columns]
        for offset, weight in enumerate(weights[1:], 1):
            across.add_(down[:, :, offset : offset + columns], alpha=weight)
        return across

    def mix(self, image: Tensor) -> Tensor:
        return image @ torch.from_numpy(MIXING.T).to(image.device)

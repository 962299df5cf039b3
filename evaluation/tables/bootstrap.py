"""How sure means over images are: bootstrap resamples, and Wilson's interval of rates."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

LEVEL = 0.95
RESAMPLES = 10_000
_DRAWN = 1_000_000  # images drawn at once, which bounds the memory


def resampled_means(values: NDArray[np.float64], resamples: int, seed: int | Sequence[int]) -> NDArray[np.float64]:
    """Means of columns over images drawn with replacement.

    All columns see the same draws, so the difference of two columns of the result is that of a paired bootstrap.

    Args:
        values: (I, N), a row per image.

    Returns:
        (resamples, N)
    """
    images = len(values)
    rng = np.random.default_rng(seed)
    means = np.empty((resamples, values.shape[1]))
    step = max(1, _DRAWN // images)
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        drawn = rng.integers(images, size=rows * images, dtype=np.int32)
        ends = np.arange(0, drawn.size + 1, images, dtype=np.int32)
        # A sparse product sums the drawn rows; a dense one of counts would contend for all cores.
        sums = csr_array((np.ones(drawn.size), drawn, ends), shape=(rows, images)) @ values
        means[start : start + rows] = sums / images
    return means


def percentiles(resampled: NDArray[np.float64], level: float = LEVEL) -> tuple[float, float]:
    """Ends of the percentile interval, of (resamples,) values."""
    low, high = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def wilson(rate: float, images: int, level: float = LEVEL) -> tuple[float, float]:
    """Ends of Wilson's score interval (1927) of a rate seen over some images; not empty for rates of 0 and 1."""
    z = NormalDist().inv_cdf((1 + level) / 2)
    scale = 1 + z**2 / images
    centre = (rate + z**2 / (2 * images)) / scale
    half = z / scale * (rate * (1 - rate) / images + z**2 / (4 * images**2)) ** 0.5
    return max(0.0, min(rate, centre - half)), min(1.0, max(rate, centre + half))


def mean_of_rates(
    rates: Sequence[float], images: Sequence[int], weights: Sequence[float], level: float = LEVEL
) -> tuple[float, float]:
    """Ends of the interval of a weighted mean of rates over sets of images that have nothing to do with each other.

    The distances of the ends of Wilson's intervals from the rates add as standard errors do (Zou and Donner 2008).
    """
    share = np.asarray(weights, float) / np.sum(weights)
    ends = np.array([wilson(rate, of, level) for rate, of in zip(rates, images, strict=True)])
    below, above = np.linalg.norm(share[:, None] * (ends - np.array(rates)[:, None]), axis=0)
    mean = float(share @ rates)
    return mean - float(below), mean + float(above)

"""How sure a mean over seeds and images is."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from samdeblur.evaluation.tables.bootstrap import LEVEL, wilson

Values = NDArray[np.float64]  # (seeds, images)


class Interval(NamedTuple):
    """A mean, the ends of its 95% interval, and the two-sided p that it is 0."""

    mean: float
    low: float
    high: float
    p: float = 1.0


def of_means(values: Values) -> Interval:
    """Student's interval where both seeds and images are drawn at random (a two-way random effects model).

    The variance is that of the seeds' means over their number, plus the same of the images, less what is counted twice;
    degrees of freedom are Satterthwaite's (1946). Never narrower than seeds or images alone make it.
    """
    mean = float(values.mean())
    variance, freedom = _variance(values)
    if variance == 0:
        return Interval(mean, mean, mean, float(mean == 0 or values.size == 1))  # of one value nothing is known
    error = variance**0.5
    half = stats.t.ppf((1 + LEVEL) / 2, freedom) * error
    return Interval(mean, mean - half, mean + half, float(2 * stats.t.sf(abs(mean) / error, freedom)))


def of_rates(values: Values) -> Interval:
    """Wilson's interval of a share, for as many images as would leave it as unsure as these seeds and images do."""
    rate = float(values.mean())
    variance, _ = _variance(values)
    images = np.clip(rate * (1 - rate) / variance, 1, values.size) if variance > 0 else values.shape[1]
    return Interval(rate, *wilson(rate, images))


def _variance(values: Values) -> tuple[float, float]:
    """Of the mean, and its degrees of freedom."""
    of_seeds, of_images = (_of_mean(values.mean(axis=axis)) for axis in (1, 0))
    rest = values - values.mean(axis=0) - values.mean(axis=1, keepdims=True) + values.mean()
    both = (rest**2).sum() / max(1, np.prod(np.array(values.shape) - 1)) / values.size
    variance = max(of_seeds + of_images - both, of_seeds, of_images)
    parts = sum(part**2 / (count - 1) for part, count in zip((of_seeds, of_images), values.shape, strict=True) if part)
    return float(variance), float(variance**2 / parts) if parts else 1.0


def _of_mean(values: Values) -> float:
    return float(values.var(ddof=1) / len(values)) if len(values) > 1 else 0.0


def holm(ps: Values) -> Values:
    """p values of several tests, corrected for their number (Holm 1979)."""
    order = np.argsort(ps)
    corrected = np.maximum.accumulate(ps[order] * np.arange(len(ps), 0, -1)).clip(max=1)
    result = np.empty_like(ps)
    result[order] = corrected
    return result

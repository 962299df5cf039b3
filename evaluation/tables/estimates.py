"""Means over images, how sure they are, and what one row has over another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from samdeblur.evaluation.results import SetResult
from samdeblur.evaluation.tables.arrangement import FROM_IMAGES, Arrangement, Column
from samdeblur.evaluation.tables.bootstrap import mean_of_rates, percentiles, resampled_means

METRICS = (*FROM_IMAGES, "mcr")
HIGHEST_DB = 100.0  # PSNR above it, that of perfect results too, counts as this much, so that means stay finite
FEWEST = 2  # images that have an interval
INPUT = -1  # position of the blurred input among rows


@dataclass(frozen=True)
class Estimate:
    """A number and the ends of its interval; published ones have none."""

    value: float
    low: float | None = None
    high: float | None = None

    def minus(self, other: float) -> Estimate:
        low, high = (None if end is None else end - other for end in (self.low, self.high))
        return Estimate(self.value - other, low, high)


@dataclass(frozen=True)
class Cell:
    """One row on one set. Keys are names of metrics; mode collapse rates are shares.

    Attributes:
        over_baseline: this minus the baseline, image by image.
        over_published: this minus the published value of the same method.
        spread: standard deviation over the runs of a mean.
    """

    images: int
    scores: Mapping[str, Estimate]
    over_baseline: Mapping[str, Estimate] = field(default_factory=dict)
    over_published: Mapping[str, Estimate] = field(default_factory=dict)
    spread: Mapping[str, float] = field(default_factory=dict)
    inference: str = ""


@dataclass(frozen=True)
class Sampled:
    """A metric of one row on one set, or the mean over several sets.

    Attributes:
        runs: (runs,) means over images.
        resampled: (resamples,) means over images and runs.
        values, images, weights: of the sets.
    """

    runs: NDArray[np.float64]
    resampled: NDArray[np.float64]
    values: tuple[float, ...]
    images: tuple[int, ...]
    weights: tuple[float, ...] = (1.0,)

    @property
    def value(self) -> float:
        return float(self.runs.mean())


Samples = Mapping[tuple[int, str], Sampled]  # (position of a row, metric) ->


def sample(column: Column, arrangement: Arrangement, resamples: int, seed: int) -> Samples:
    """Means over the images of a set, and over resamples of them that are the same for all rows.

    Sets of other images are resampled independently, the same images with other masks alike.
    """
    collapse_db = arrangement.conventions.collapse_db
    values: dict[tuple[int, str], NDArray[np.float64]] = {}  # (I, runs)
    for position, group in enumerate(arrangement.groups):
        results = [network.sets[column.key] for network in group.networks if column.key in network.sets]
        if not results:
            continue
        arrays = [_values(column, result, collapse_db) for result in results]
        for metric in METRICS:
            if all(metric in of_run for of_run in arrays):
                values[position, metric] = np.stack([of_run[metric] for of_run in arrays], axis=1)
        blurred = _values(column, results[0], collapse_db, "_blurred")
        for metric in FROM_IMAGES:
            if metric in blurred:
                values.setdefault((INPUT, metric), blurred[metric][:, None])
    over_runs = np.stack([array.mean(axis=1) for array in values.values()], axis=1)
    name = crc32("\n".join(column.key[:2]).encode(errors="replace"))
    resampled = resampled_means(over_runs, resamples, (seed, name)).T
    return {
        key: Sampled(array.mean(axis=0), row, (float(array.mean()),), (len(array),))
        for (key, array), row in zip(values.items(), resampled, strict=True)
    }


def _values(column: Column, result: SetResult, collapse_db: float, of: str = "") -> dict[str, NDArray[np.float64]]:
    """Metrics of the result or the input, (I,) each, in the order of the column."""
    scores = {score.key: score for score in result.scores}
    ordered = [scores[key] for key in column.images]
    values = {
        metric: np.array([score.metrics[metric + of] for score in ordered])
        for metric in FROM_IMAGES
        if all(metric + of in score.metrics for score in ordered)
    }
    values["psnr"] = np.minimum(values["psnr"], HIGHEST_DB)
    values["mcr"] = np.array([-score.gain > collapse_db for score in ordered], float)
    return values


def mean_over_sets(samples: Sequence[Samples], weights: Sequence[float]) -> Samples:
    """Weighted means, of the rows that have all sets."""
    return {
        key: Sampled(
            np.average([found[key].runs for found in samples], axis=0, weights=weights),
            np.average([found[key].resampled for found in samples], axis=0, weights=weights),
            tuple(found[key].value for found in samples),
            tuple(sum(found[key].images) for found in samples),
            tuple(weights),
        )
        for key in samples[0]
        if all(key in found for found in samples)
    }


def cell(
    samples: Samples,
    position: int,
    baseline: int | None = None,
    published: Cell | None = None,
    inference: str = "",
) -> Cell | None:
    """What stands in a row.

    Args:
        baseline: position of the row to compare with.
        published: what to compare with besides.
    """
    mine = {metric: samples[position, metric] for metric in METRICS if (position, metric) in samples}
    if not mine:
        return None
    images = max(sum(found.images) for found in mine.values())
    scores = {metric: _estimate(metric, found) for metric, found in mine.items()}
    over_baseline = {
        metric: Estimate(found.value - other.value, *_ends(found, found.resampled - other.resampled))
        for metric, found in mine.items()
        if baseline not in (None, position) and (other := samples.get((baseline or 0, metric))) is not None
    }
    theirs = published.scores if published is not None else {}
    over_published = {metric: scores[metric].minus(their.value) for metric, their in theirs.items() if metric in scores}
    spread = {metric: float(found.runs.std(ddof=1)) for metric, found in mine.items() if len(found.runs) > 1}
    return Cell(images, scores, over_baseline, over_published, spread, inference)


def _estimate(metric: str, found: Sampled) -> Estimate:
    """Rates do without resamples: those of a set without a collapse never have one, and would leave no doubt."""
    if metric == "mcr" and min(found.images) >= FEWEST:
        return Estimate(found.value, *mean_of_rates(found.values, found.images, found.weights))
    return Estimate(found.value, *_ends(found, found.resampled))


def _ends(found: Sampled, resampled: NDArray[np.float64]) -> tuple[float, float] | tuple[None, None]:
    """Ends of the interval; one image says nothing of others, so there is none where a set has no more."""
    return percentiles(resampled) if min(found.images) >= FEWEST else (None, None)

"""Crops of several stores, each with its share of the samples.

Which store sample n is of, and which of its own samples it is, follow from the seed and n alone: of every CYCLE samples
each store has its share exactly, in an order that is drawn for each cycle. So a run goes on anywhere, as with one.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from samdeblur.train.data.crops import Crop, CropDataset
from samdeblur.train.settings import ConfigError

CYCLE = 1000  # samples


class Mixture(Dataset[Crop]):
    """Args:
    parts: the crops of each store; with seeds of their own, or stores alike would be cut alike.
    shares: of the samples, any positive numbers.
    seed: of the order of the stores.

    Raises ConfigError for a share too small to have a sample of a cycle.
    """

    def __init__(self, parts: Sequence[CropDataset], shares: Sequence[float], seed: int) -> None:
        self.parts, self.seed = tuple(parts), seed
        self.counts = counts_of(shares)

    def __getitem__(self, sample: int) -> Crop:
        part, number = self.place(sample)
        dataset = self.parts[part]
        return dataset.crop(number, dataset.cutting.size_of(sample))

    def place(self, sample: int) -> tuple[int, int]:
        """Which store a sample is of, and which of its samples it is."""
        cycle, place = divmod(sample, CYCLE)
        order = _order(self.seed, cycle, self.counts)
        part = int(order[place])
        return part, cycle * self.counts[part] + int((order[:place] == part).sum())


def counts_of(shares: Sequence[float]) -> tuple[int, ...]:
    """Samples of a cycle for each share, by largest remainders. Raises ConfigError."""
    total = sum(shares)
    exact = [CYCLE * share / total for share in shares]
    counts = [int(value) for value in exact]
    for part in sorted(range(len(exact)), key=lambda part: counts[part] - exact[part])[: CYCLE - sum(counts)]:
        counts[part] += 1
    if not all(counts):
        small = shares[counts.index(0)]
        raise ConfigError(f"share {small:g} of {total:g}: less than one of {CYCLE} samples; leave the store out")
    return tuple(counts)


@lru_cache(maxsize=4)
def _order(seed: int, cycle: int, counts: tuple[int, ...]) -> NDArray[np.int64]:
    """The store of each sample of a cycle."""
    stores = np.repeat(np.arange(len(counts)), counts)
    return np.random.default_rng((seed, 2, cycle)).permutation(stores)

"""Mask dropout: which masks of a training sample leave. Chosen by a hash, so a sample always loses the same ones.

The hash is that of SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014), in integers,
so every device chooses alike.
"""

from __future__ import annotations

import torch
from torch import Tensor

from samdeblur.models.priors.pooling import AtomBatch

_STEP = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX = ((30, 0xBF58476D1CE4E5B9 - (1 << 64)), (27, 0x94D049BB133111EB - (1 << 64)))


def drop_masks(batch: AtomBatch, rate: float, generator: torch.Generator | None = None) -> AtomBatch:
    """Of the M masks of each image, int(rate * M) chosen at random leave; no pixel is touched.

    Atoms left with no mask join the background of their image when pooled.

    Args:
        batch: with seeds, the choice follows from the seed of each image and the numbers of its masks.
        generator: of the seeds of a batch that brings none; by default torch's random numbers.
    """
    masks = batch.mask_image
    counts = torch.bincount(masks, minlength=batch.batch_size)
    words = random_words(seeds_of(batch, generator)[masks], batch.mask_ids)
    order = torch.argsort(words)
    order = order[torch.argsort(masks[order], stable=True)]  # shuffles the masks within each image
    rank = torch.empty_like(masks)
    rank[order] = torch.arange(len(masks), device=masks.device)
    rank -= (counts.cumsum(0) - counts)[masks]
    kept = rank >= (rate * counts.double()).long()[masks]
    return batch._replace(pairs=batch.pairs[kept[batch.pairs[:, 1]]])


def seeds_of(batch: AtomBatch, generator: torch.Generator | None = None) -> Tensor:
    """The seed of each image, (B,) int64; drawn anew for a batch that brings none."""
    if len(batch.seeds):
        return batch.seeds
    device = batch.mask_image.device
    return torch.randint(-(1 << 63), (1 << 63) - 1, (batch.batch_size,), generator=generator, device=device)


def random_words(seeds: Tensor, numbers: Tensor) -> Tensor:
    """A 64-bit word for each seed and number, int64 of the shape that the two broadcast to."""
    word = seeds + (numbers + 1) * _STEP
    for shift, factor in _MIX:
        word = (word ^ _shifted(word, shift)) * factor
    return word ^ _shifted(word, 31)


def _shifted(word: Tensor, by: int) -> Tensor:
    """Shifted to the right as if it had no sign."""
    return (word >> by) & ((1 << (64 - by)) - 1)

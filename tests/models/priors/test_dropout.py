from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from samdeblur.models import AtomBatch, drop_masks, mask_average_pool
from samdeblur.models.priors.dropout import random_words
from samdeblur.storage import AtomMap


def _strips(counts: list[int], width: int) -> AtomBatch:
    """Images of one row whose first pixels have a mask each: which masks are left can be read from the pixels."""
    return AtomBatch.collate([AtomMap.from_masks(np.eye(n, width, dtype=bool)[:, None], (1, width)) for n in counts])


def _kept(batch: AtomBatch) -> list[list[int]]:
    """Masks each image has left."""
    left = batch.pairs[:, 1].unique()
    return [
        (left[batch.mask_image[left] == image] - (batch.mask_image < image).sum()).tolist()
        for image in range(batch.batch_size)
    ]


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_exactly_the_whole_part_of_the_share_is_dropped_of_every_image():
    counts = list(range(121))
    batch, generator, wrong = _strips(counts, 121), _generator(), []
    for percent in range(101):
        rate = percent / 100
        left = drop_masks(batch, rate, generator).pairs[:, 1].unique()
        dropped = torch.tensor(counts) - batch.mask_image[left].bincount(minlength=len(counts))
        wrong += [(rate, n, d) for n, d in zip(counts, dropped.tolist(), strict=True) if d != int(rate * n)]
    assert not wrong, f"(rate, masks, dropped): {wrong}"


def test_any_choice_of_masks_is_made_and_images_choose_by_themselves():
    batch, generator = _strips([4, 0, 4], 6), _generator()
    drawn = [_kept(drop_masks(batch, 0.5, generator)) for _ in range(600)]
    both = {(tuple(first), tuple(last)) for first, _, last in drawn}
    assert len(both) == 36  # every pair of the six choices of two of four
    counts = [sum(k in first for first, *_ in drawn) for k in range(4)]
    assert all(250 < count < 350 for count in counts)  # 300 on average, deviation 12


def test_a_generator_makes_dropout_repeatable_and_leaves_the_global_one_alone():
    batch, state = _strips([9, 12, 5], 12), torch.get_rng_state()
    draws = [_kept(drop_masks(batch, 0.5, _generator(seed))) for seed in (1, 1, 2, 3)]
    assert draws[0] == draws[1]
    assert any(first != second for first, second in pairwise(draws[1:]))
    assert torch.equal(torch.get_rng_state(), state)


def _splitmix64(seed: int, number: int) -> int:
    """The number-th output of the generator, as its authors write it, as a signed number."""
    limit = 1 << 64
    z = (seed + (number + 1) * 0x9E3779B97F4A7C15) % limit
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % limit
    z = (z ^ z >> 27) * 0x94D049BB133111EB % limit
    z ^= z >> 31
    return z - limit if z >= limit // 2 else z


def test_the_words_are_those_of_splitmix64():
    seeds, numbers = [0, 1, -1, 2**63 - 1, -(2**63), 1234567], [0, 1, 2, 255, 4095]
    words = random_words(torch.tensor(seeds)[:, None], torch.tensor(numbers))
    assert words.tolist() == [[_splitmix64(seed, number) for number in numbers] for seed in seeds]


def test_with_a_seed_an_image_loses_the_same_masks_in_any_company():
    batch = _strips([9, 12, 5, 12], 12)._replace(seeds=torch.tensor([3, 4, 5, 4]))
    state = torch.get_rng_state()
    together = _kept(drop_masks(batch, 0.5))
    assert together[1] == together[3]
    for image, count in enumerate([9, 12, 5, 12]):
        (alone,) = _kept(drop_masks(_strips([count], 12)._replace(seeds=batch.seeds[image : image + 1]), 0.5))
        assert alone == together[image]
        ranked = sorted(range(count), key=lambda k: _splitmix64(int(batch.seeds[image]), k))
        assert alone == sorted(ranked[int(0.5 * count) :])
    assert torch.equal(torch.get_rng_state(), state)
    assert _kept(drop_masks(batch._replace(seeds=batch.seeds + 1), 0.5)) != together


def test_a_crop_chooses_by_the_numbers_masks_have_in_the_full_image():
    masks = AtomMap.from_masks(np.eye(12, dtype=bool)[:, None], (1, 12))
    crop = masks.crop(0, 3, 1, 9)  # without the first three
    (left,) = _kept(drop_masks(AtomBatch.collate([crop], seeds=[8]), 0.5))
    ranked = sorted(crop.mask_ids.tolist(), key=lambda k: _splitmix64(8, k))
    assert [crop.mask_ids[k] for k in left] == sorted(ranked[4:])


@pytest.mark.parametrize("rate", [0.0, 0.3, 0.5, 1.0])
def test_dropped_masks_join_the_background(random_masks, algorithm_1, rate):
    masks = [random_masks(np.random.default_rng(n), n, 23, 31) for n in (7, 0, 1, 25)]
    batch = AtomBatch.collate([AtomMap.from_masks(planes, (23, 31)) for planes in masks])
    features = torch.randn(4, 2, 23, 31, dtype=torch.float64, generator=_generator())
    dropped = drop_masks(batch, rate, _generator())
    pooled = mask_average_pool(features, dropped)
    for image, (planes, kept) in enumerate(zip(masks, _kept(dropped), strict=True)):
        expected = torch.from_numpy(algorithm_1(features[image].numpy(), planes[kept]))
        torch.testing.assert_close(pooled[image], expected, rtol=1e-12, atol=1e-12)
    assert all(
        mine is theirs for mine, theirs in zip(batch._replace(pairs=None), dropped._replace(pairs=None), strict=True)
    )

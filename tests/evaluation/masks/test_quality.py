"""What is said of masks, against plain formulas on a few shapes."""

from __future__ import annotations

import math

import numpy as np
import pytest

from samdeblur.evaluation.masks.quality import REACH, Quality, border_distance, edge_rank, mean, quality_of
from samdeblur.storage import AtomMap


def squares(*boxes, shape=(40, 50)):
    masks = np.zeros((len(boxes), *shape), bool)
    for mask, (top, left, bottom, right) in zip(masks, boxes, strict=True):
        mask[top:bottom, left:right] = True
    return AtomMap.from_masks(masks, shape)


def drawn(*boxes, shape=(40, 50)):
    """Grey, noisy, with a bright thing at each place."""
    image = np.random.default_rng(0).integers(90, 110, (*shape, 3)).astype(np.uint8)
    for top, left, bottom, right in boxes:
        image[top:bottom, left:right] = np.minimum(image[top:bottom, left:right] + 100, 255)
    return image


BOX = (10, 12, 26, 30)


def test_counts():
    found = quality_of(squares((0, 0, 10, 10), (5, 0, 15, 10)), None)
    assert (found.masks, found.covered, found.overlap) == (2, 150 / 2000, 200 / 150)
    assert math.isnan(found.on_edges)
    assert math.isnan(found.iou)


def test_an_image_without_masks_has_nothing_to_say_but_that():
    found = quality_of(
        AtomMap.from_masks(np.zeros((0, 8, 8), bool), (8, 8)), drawn(shape=(8, 8)), squares(shape=(8, 8))
    )
    assert (found.masks, found.covered) == (0, 0)
    assert all(math.isnan(value) for name, value in vars(found).items() if name not in ("masks", "covered"))


def test_borders_on_edges_rank_high_and_those_moved_away_fall():
    image = drawn(BOX)
    ranks = [quality_of(squares(tuple(side + pixels for side in BOX)), image).on_edges for pixels in (0, 1, 2, 4)]
    assert ranks[0] > 0.75
    assert max(ranks[1:]) < ranks[0] - 0.1


def test_borders_anywhere_rank_one_half():
    image = drawn(shape=(200, 200))
    found = quality_of(squares(*[(n, n, n + 30, n + 40) for n in range(0, 150, 10)], shape=(200, 200)), image)
    assert found.on_edges == pytest.approx(0.5, abs=0.03)
    assert quality_of(squares(BOX), np.full((40, 50, 3), 7, np.uint8)).on_edges == 0.5


def test_the_rank_of_an_edge_is_what_counting_says():
    image = np.random.default_rng(1).integers(0, 256, (20, 24, 3)).astype(np.uint8)
    found = edge_rank(image)
    assert found.shape == (20, 24)
    assert 0 <= found.min() <= found.max() <= 1
    assert found.mean() == pytest.approx(0.5, abs=0.02)  # somebody is above whenever somebody is below


def test_a_reference_is_met():
    box, other = (0, 0, 10, 10), (20, 20, 30, 40)
    found = quality_of(squares(box, (0, 0, 10, 12)), None, squares(box, other))
    assert found.recall == 0.5
    assert found.precision == 0.5
    assert found.iou == 0.5  # of 1 and 0
    same = quality_of(squares(box, other), None, squares(box, other))
    assert (same.iou, same.recall, same.precision, same.border_error, same.border_surplus) == (1, 1, 1, 0, 0)


def test_distances_of_borders_are_those_to_the_nearest_pixel():
    rng = np.random.default_rng(2)
    one, other = rng.random((2, 12, 15)) < 0.05
    places = np.argwhere(other)
    expected = [min(np.hypot(*(place - there)) for there in places) for place in np.argwhere(one)]
    assert border_distance(one, other) == pytest.approx(np.minimum(expected, REACH).mean(), abs=0.01)
    assert border_distance(one, np.zeros_like(one)) == REACH
    assert math.isnan(border_distance(np.zeros_like(one), other))


def test_means_leave_out_what_is_not_there():
    found = mean([Quality(masks=1, iou=0.5), Quality(masks=3)])
    assert (found.masks, found.iou) == (2, 0.5)
    assert math.isnan(found.recall)

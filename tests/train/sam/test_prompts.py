from __future__ import annotations

import numpy as np
import pytest

from samdeblur.train.sam.prompts import TARGETS, _prompts, draw


@pytest.mark.parametrize("tokens", [4, 8, 12])
def test_prompts_lie_in_their_targets(worlds, tokens):
    inside = []
    for seed in range(8):
        image = draw(worlds, tokens, 12, (3, seed))
        size = 8 * tokens
        assert image.image.shape == (size, size, 3)
        assert image.atoms.shape == (size // 2, size // 2)
        areas = np.bincount(image.atoms.ravel(), minlength=len(image.table)) @ image.table
        for point, box, is_box, targets in zip(image.points, image.boxes, image.is_box, image.targets, strict=True):
            meant = targets[targets >= 0]
            assert len(meant) >= 1
            assert list(targets) == [*meant, *[-1] * (TARGETS - len(meant))]
            assert len(set(meant)) == len(meant)
            assert (np.diff(areas[meant]) >= -0.02 * areas.max()).all()  # small ones first, but for the sampling
            if is_box:
                assert len(meant) == 1
                rows, columns = np.nonzero(image.table[image.atoms, meant[0]])
                assert box[0] - 22 <= 2 * columns.min()
                assert box[3] + 22 >= 2 * rows.max()
            column, row = (int(place) for place in point // 2)
            near = image.atoms[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2]
            inside += image.table[near][..., meant].any(axis=(0, 1)).tolist()
    assert np.mean(inside) > 0.95  # not all: the map is a sample of the pixels


def test_the_points_of_an_image_mean_all_masks_around_them(worlds):
    image = draw(worlds, 12, 60, (8, 1))
    exact = 0
    for point, is_box, targets in zip(image.points, image.is_box, image.targets, strict=True):
        column, row = (int(place) for place in point // 2)
        around = np.flatnonzero(image.table[image.atoms[row, column]])
        exact += not is_box and set(targets[targets >= 0]) == set(around)
    assert exact > 20  # not all: tiny masks are no targets, and the map is a sample of the pixels


def test_masks_are_asked_for_equally_often_however_small_they_are(worlds):
    asked: dict[int, int] = {}
    image = draw(worlds, 12, 600, (8, 1))
    for is_box, targets, weights in zip(image.is_box, image.targets, image.weights, strict=True):
        meant = targets[(targets >= 0) & (weights == 1)]
        assert len(meant) <= 1
        assert len(meant) == 1 or not is_box
        for mask in meant:
            asked[mask] = asked.get(mask, 0) + 1
    drawn = sum(asked.values())
    assert 480 < drawn < 590  # the others are of places
    assert max(asked.values()) < 2 * drawn / len(asked)
    assert min(asked.values()) > drawn / len(asked) / 3


def test_the_mask_that_is_asked_for_is_a_target_in_the_deepest_pile():
    size, depth = 32, 9  # squares in squares
    atoms = np.minimum(np.indices((size, size)).min(axis=0), depth).astype(np.uint16)
    table = np.tri(depth + 1, depth, -1, dtype=bool)
    areas = np.bincount(atoms.ravel()) @ table
    _, _, is_box, targets, weights = _prompts(np.random.default_rng(0), atoms, table, areas, 200)
    there = ((weights == 1) & (targets >= 0)).sum(axis=1)
    assert (targets[~is_box] >= 0).all(axis=1).any()  # as many as are trained at most
    assert 150 < there.sum() < 200
    assert there.max() == 1


def test_prompts_follow_from_the_seed(worlds):
    first, again, other = (draw(worlds, 8, 6, (1, seed)) for seed in (5, 5, 6))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first.image, other.image)

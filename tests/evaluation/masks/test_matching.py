from __future__ import annotations

import numpy as np
import pytest

from samdeblur.evaluation.masks.matching import borders, boundary_recall, distinct, mask_iou, match
from samdeblur.storage import AtomMap


def random_masks(rng, count, shape=(24, 31)):
    masks = []
    for _ in range(count):
        top, left = rng.integers(0, shape[0] - 3), rng.integers(0, shape[1] - 3)
        mask = np.zeros(shape, bool)
        mask[top : top + rng.integers(2, 14), left : left + rng.integers(2, 16)] = True
        masks.append(mask)
    return masks


@pytest.mark.parametrize(("n_found", "n_true"), [(7, 5), (1, 1), (0, 4), (4, 0), (20, 30)])
def test_iou_of_all_pairs_is_that_of_the_pixels(n_found, n_true):
    rng = np.random.default_rng(n_found)
    found, truth = random_masks(rng, n_found), random_masks(rng, n_true)
    expected = np.array([[(a & b).sum() / (a | b).sum() for b in truth] for a in found]).reshape(n_found, n_true)
    iou = mask_iou(AtomMap.from_masks(found, (24, 31)), AtomMap.from_masks(truth, (24, 31)))
    assert iou.shape == (n_found, n_true)
    assert np.allclose(iou, expected)


def test_partners_are_one_to_one():
    iou = np.array([[0.9, 0.6, 0.0], [0.8, 0.0, 0.0], [0.0, 0.55, 0.49]])
    found = match(iou)
    # 0.9 takes the first pair, so 0.8 and 0.6 have lost a side; 0.55 remains, 0.49 is too little.
    assert (found.true, found.found, found.at_50, found.at_75) == (3, 3, 2, 1)
    assert match(np.zeros((0, 4))).at_50 == 0
    assert match(np.zeros((4, 0))).true == 0


def test_border_recall_counts_what_is_near():
    truth, found = np.zeros((20, 20), int), np.zeros((20, 20), int)
    truth[:, 10:] = 1
    found[:, 12:] = 1
    assert boundary_recall(borders(found), borders(truth), tolerance=2) == 1
    assert boundary_recall(borders(found), borders(truth), tolerance=1) == 0
    found[10:] = 0
    assert boundary_recall(borders(found), borders(truth), tolerance=2) == pytest.approx(0.6, abs=0.05)
    assert np.isnan(boundary_recall(borders(found), np.zeros((20, 20), bool)))


def test_distinct_masks_have_a_size_and_do_not_repeat():
    sides = {"tiny": (0, 1), "some": (0, 20), "same": (0, 21), "apart": (30, 20), "all": (0, 100)}
    masks = []
    for start, side in sides.values():
        mask = np.zeros((100, 100), bool)
        mask[start : start + side, start : start + side] = True
        masks.append(mask)
    assert distinct(AtomMap.from_masks(masks, (100, 100))) == [1, 3]

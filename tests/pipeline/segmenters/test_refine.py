from __future__ import annotations

import cv2
import numpy as np
import pytest

from samdeblur.pipeline.segmenters.refine import edge_strength, refine
from samdeblur.storage import AtomMap


def disk(y, x, radius, shape=(80, 100)):
    rows, columns = np.indices(shape)
    return (rows - y) ** 2 + (columns - x) ** 2 <= radius**2


@pytest.fixture(scope="module")
def scene():
    """Two disks, one at the border of the image, and an image with exactly these edges."""
    masks = np.stack([disk(40, 50, 20), disk(10, 20, 24)])
    image = np.full((80, 100, 3), 90, np.uint8)
    image[masks[0]] = (200, 40, 40)
    image[masks[1]] = (40, 180, 60)
    return masks, image


@pytest.mark.parametrize("shift", [(2, 1), (-2, -1), (1, -2), (0, 3)])
def test_borders_go_back_to_the_edges_they_were_moved_from(scene, shift):
    masks, image = scene
    found = refine(AtomMap.from_masks(np.roll(masks[:1], shift, (1, 2))), image, 4).to_masks()
    wrong = np.count_nonzero(found != masks[:1])
    assert wrong <= 0.15 * np.count_nonzero(np.roll(masks[:1], shift, (1, 2)) != masks[:1])


def test_no_border_moves_farther_than_it_may(scene):
    masks, image = scene
    far = AtomMap.from_masks(np.roll(masks, (9, 9), (1, 2)))
    for reach in (1, 3):
        before, after = far.to_masks(), refine(far, image, reach).to_masks()
        for mask, found in zip(before, after, strict=True):
            inside, outside = (
                cv2.distanceTransform(side.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
                for side in (mask, ~mask)
            )
            changed = mask != found
            assert changed.any()
            assert np.maximum(inside, outside)[changed].max() <= reach


def test_a_border_of_the_image_is_no_border_of_a_mask(scene):
    masks, image = scene
    found = refine(AtomMap.from_masks(masks[1:]), image, 3).to_masks()[0]
    assert found[0, :40].all()


def test_masks_keep_their_number_and_order_and_small_ones_their_pixels(scene):
    masks, image = scene
    small, whole = disk(60, 80, 2), np.ones((80, 100), bool)
    stack = np.stack([small, masks[0], whole, np.zeros_like(small)])
    found = refine(AtomMap.from_masks(stack), image, 5).to_masks()
    assert all(np.array_equal(found[number], stack[number]) for number in (0, 2, 3))
    assert np.count_nonzero(found[1] != masks[0]) < 0.05 * masks[0].sum()


def test_each_mask_is_refined_by_itself(scene):
    masks, image = scene
    moved = np.roll(masks, (2, 2), (1, 2))
    together = refine(AtomMap.from_masks(moved), image, 3).to_masks()
    for number in range(2):
        assert np.array_equal(refine(AtomMap.from_masks(moved[number : number + 1]), image, 3).to_masks()[0],
                              together[number])  # fmt: skip


def test_no_masks_stay_none(scene):
    assert refine(AtomMap.empty((80, 100)), scene[1], 3).n_masks == 0


def test_edges_are_those_of_any_channel():
    image = np.zeros((20, 20, 3), np.uint8)
    image[:, 10:, 2] = 100
    strength = edge_strength(image)
    assert strength[:, 9:11].min() > 10 * strength[:, :5].max()
    assert np.array_equal(strength, edge_strength(image[..., ::-1]))

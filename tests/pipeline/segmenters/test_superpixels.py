from __future__ import annotations

import json

import numpy as np
import pytest
from skimage.data import astronaut

from samdeblur.pipeline import SuperpixelSegmenter
from samdeblur.pipeline.segmenters import superpixels
from samdeblur.storage.decode import BadImage


@pytest.fixture(scope="module", params=["photograph", "patches", "noise", "one colour", "one column", "one row", "4x4"])
def image(request, random_image):
    return {
        "photograph": lambda: astronaut()[100:228, 150:310],
        "patches": lambda: random_image(0, 64, 80),
        "noise": lambda: np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8),
        "one colour": lambda: np.full((40, 50, 3), 90, np.uint8),
        "one column": lambda: random_image(0, 40, 1),
        "one row": lambda: random_image(0, 1, 40),
        "4x4": lambda: random_image(0, 4, 4),
    }[request.param]()


@pytest.fixture(scope="module")
def segmented(image):
    atoms, records = SuperpixelSegmenter().segment(image)
    return atoms.to_masks(), records


def test_there_are_masks_of_the_size_of_the_image(image, segmented):
    masks, _ = segmented
    assert masks.shape[1:] == image.shape[:2]
    assert len(masks) > 0


def test_any_two_masks_are_disjoint_or_one_lies_inside_the_other(segmented):
    flat = segmented[0].reshape(len(segmented[0]), -1).astype(np.float32)
    common, areas = flat @ flat.T, flat.sum(axis=1)
    assert ((common == 0) | (common == areas) | (common == areas[:, None])).all()


def test_no_mask_repeats(segmented):
    masks, _ = segmented
    assert len(np.unique(masks.reshape(len(masks), -1), axis=0)) == len(masks)


def test_records_are_the_areas_and_boxes_of_the_masks(segmented, dense_boxes):
    masks, records = segmented
    assert np.array_equal(records["area"], masks.sum(axis=(1, 2)))
    assert np.array_equal(np.stack([records[f"bbox_{side}"] for side in "xywh"], axis=1), dense_boxes(masks))
    assert {column.dtype for column in records.values()} == {np.dtype(np.float64)}


def test_areas_keep_to_the_default_limits(image, segmented):
    areas = segmented[0].sum(axis=(1, 2)) / image[..., 0].size
    assert areas.min() >= 0.001
    assert areas.max() <= 0.5


def test_masks_of_real_images_overlap(random_image):
    masks = SuperpixelSegmenter().segment(random_image(0, 64, 80))[0].to_masks()
    assert masks.sum(axis=0).max() > 1


def test_the_regions_of_an_image_are_found(random_image):
    image = random_image(0, 60, 80)  # 3 x 4 patches of one colour each
    found = {mask.tobytes() for mask in SuperpixelSegmenter().segment(image)[0].to_masks()}
    for row, column in np.ndindex(3, 4):
        patch = np.zeros((60, 80), bool)
        patch[20 * row : 20 * (row + 1), 20 * column : 20 * (column + 1)] = True
        assert patch.tobytes() in found


@pytest.mark.parametrize(("low", "high"), [(0.02, 0.5), (0, 0.05), (0.01, 0.02), (0, 1)])
def test_area_limits_leave_out_what_does_not_fit_and_nothing_else(random_image, low, high):
    image = random_image(1, 64, 80)
    everything = SuperpixelSegmenter(min_area=0, max_area=1).segment(image)[0].to_masks()
    some = SuperpixelSegmenter(min_area=low, max_area=high).segment(image)[0].to_masks()
    shares = everything.mean(axis=(1, 2))
    fits = (shares >= low) & (shares <= high)
    assert 0 < fits.sum() <= len(fits)
    assert np.array_equal(some, everything[fits])


def test_a_single_pixel_has_no_mask_that_fits():
    atoms, records = SuperpixelSegmenter().segment(np.zeros((1, 1, 3), np.uint8))
    assert atoms.shape == (1, 1)
    assert atoms.n_masks == 0
    assert [len(column) for column in records.values()] == [0] * 5


def test_the_same_image_gives_the_same_masks(random_image):
    one, other = (SuperpixelSegmenter().segment(random_image(2, 64, 80))[0] for _ in range(2))
    assert one == other


def test_the_recipe_names_every_setting_as_json():
    settings = {"n_segments": 20, "compactness": 5.0, "thresholds": (9.0,), "min_area": 0.1, "max_area": 0.9}
    recipe = SuperpixelSegmenter(**settings).recipe()
    assert json.loads(json.dumps(recipe)) == recipe
    assert recipe == {"name": "superpixels", **settings, "thresholds": [9.0]}


def test_images_that_take_more_memory_than_is_stated_are_refused(monkeypatch):
    monkeypatch.setattr(superpixels, "MAX_PIXELS", 40 * 50 - 1)
    with pytest.raises(BadImage, match="50x40 pixels; superpixels take at most"):
        SuperpixelSegmenter().segment(np.zeros((40, 50, 3), np.uint8))

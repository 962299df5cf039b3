from __future__ import annotations

import inspect
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from segment_anything import SamAutomaticMaskGenerator

from samdeblur.pipeline import MaskGenerator, SamSegmenter
from samdeblur.pipeline.segment import SAM_SETTINGS
from samdeblur.storage.layout import RECORD_COLUMNS

PERMISSIVE = {
    "points_per_side": 4,
    "pred_iou_thresh": -100.0,
    "stability_score_thresh": -1.0,
    "box_nms_thresh": 1.0,
    "crop_nms_thresh": 1.0,
}


@pytest.fixture(scope="module")
def sam(random_sam):
    """A Sam whose random masks depend on their point."""
    sam = random_sam()
    with torch.no_grad():
        for embedding in sam.prompt_encoder.point_embeddings:
            embedding.weight.mul_(10)
        sam.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix.mul_(0.3)
        for mlp in sam.mask_decoder.output_hypernetworks_mlps:
            mlp.layers[-1].weight.mul_(40)
    return sam


@pytest.fixture(scope="module")
def image(picture):
    return picture(0, 48, 60)


SETTINGS = {
    "everything passes": {},
    "some pass": {"pred_iou_thresh": 0.155, "stability_score_thresh": 0.5},
    "overlaps go": {"box_nms_thresh": 0.8},
    "crops": {"crop_n_layers": 1, "crop_n_points_downscale_factor": 2, "crop_nms_thresh": 0.7},
    "small batches": {"points_per_batch": 3},
    "small regions go": {"min_mask_region_area": 60},
    "own points": {"points_per_side": None, "point_grids": [np.array([[0.2, 0.3], [0.7, 0.6], [0.5, 0.5]])]},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_masks_and_records_are_those_of_the_reference_in_its_order(sam, image, settings):
    settings = PERMISSIVE | settings
    theirs = SamAutomaticMaskGenerator(sam, **settings).generate(image)
    atoms, records = MaskGenerator(sam, **settings).generate(image)
    assert len(theirs) > 1
    assert np.array_equal(atoms.to_masks(), [record["segmentation"] for record in theirs])
    expected = {
        "area": [record["area"] for record in theirs],
        "predicted_iou": [record["predicted_iou"] for record in theirs],
        "stability_score": [record["stability_score"] for record in theirs],
        **{f"point_{side}": [record["point_coords"][0][i] for record in theirs] for i, side in enumerate("xy")},
        **{f"bbox_{side}": [record["bbox"][i] for record in theirs] for i, side in enumerate("xywh")},
        **{f"crop_box_{side}": [record["crop_box"][i] for record in theirs] for i, side in enumerate("xywh")},
    }
    assert set(records) == set(RECORD_COLUMNS) == set(expected)
    for name, values in expected.items():
        assert records[name].dtype == np.float64
        assert np.array_equal(records[name], values), name


def test_the_masks_compared_above_differ_and_overlap(sam, image):
    masks = MaskGenerator(sam, **PERMISSIVE).generate(image)[0].to_masks()
    assert len({mask.tobytes() for mask in masks}) > 5
    assert masks.sum(axis=0).max() > 1
    assert 0.05 < masks.mean() < 0.95


@pytest.mark.parametrize("settings", [{}, {"min_mask_region_area": 60}, {"crop_n_layers": 1}], ids=str)
def test_an_image_in_which_nothing_is_found_has_zero_masks(sam, image, settings):
    atoms, records = MaskGenerator(sam, **PERMISSIVE | {"pred_iou_thresh": 100.0} | settings).generate(image)
    assert (atoms.n_masks, atoms.shape) == (0, image.shape[:2])
    assert {name: column.shape for name, column in records.items()} == dict.fromkeys(RECORD_COLUMNS, (0,))


def test_every_setting_of_the_reference_is_one_with_its_default(sam):
    parameters = inspect.signature(SamAutomaticMaskGenerator).parameters
    expected = {name: parameters[name].default for name in parameters if name not in ("model", "output_mode")}
    assert expected == SAM_SETTINGS
    assert MaskGenerator(sam, points_per_side=5).settings == SAM_SETTINGS | {"points_per_side": 5}


@pytest.mark.parametrize("name", ["points_per_sid", "output_mode", "model_"])
def test_an_unknown_setting_is_refused_with_the_known_ones(sam, name):
    with pytest.raises(TypeError, match=f"{name}; known: points_per_side, points_per_batch"):
        MaskGenerator(sam, **{name: 1})


def test_bgr_feeds_reversed_channels(sam, image):
    rgb, bgr = (SamSegmenter(sam, "0", order, **PERMISSIVE).segment(image) for order in ("rgb", "bgr"))
    reversed_channels = np.ascontiguousarray(image[..., ::-1])
    for (atoms, records), fed in ((rgb, image), (bgr, reversed_channels)):
        expected_atoms, expected_records = MaskGenerator(sam, **PERMISSIVE).generate(fed)
        assert atoms == expected_atoms
        assert all(np.array_equal(records[name], expected_records[name]) for name in RECORD_COLUMNS)
    assert rgb[0] != bgr[0]


def test_the_channel_order_says_what_the_network_sees(sam, image, monkeypatch):
    seen = []
    segmenter = SamSegmenter(sam, "0", "bgr")
    monkeypatch.setattr(segmenter, "_generator", SimpleNamespace(generate=seen.append))
    segmenter.segment(image)
    assert np.array_equal(seen[0], image[..., [2, 1, 0]])


def test_the_recipe_names_the_checkpoint_and_every_setting_as_json(sam):
    recipe = SamSegmenter(sam, "f" * 64, "bgr", points_per_side=7).recipe()
    assert recipe == {"name": "sam", "checkpoint": "f" * 64, "channel_order": "bgr"} | SAM_SETTINGS | {
        "points_per_side": 7
    }
    assert json.loads(json.dumps(recipe)) == recipe

from __future__ import annotations

import inspect
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from segment_anything import SamAutomaticMaskGenerator

from samdeblur.pipeline import MaskGenerator, SamSegmenter
from samdeblur.pipeline.segmenters.mask_generator import SAM_SETTINGS
from samdeblur.storage.format.layout import RECORD_COLUMNS

PERMISSIVE = {
    "points_per_side": 4,
    "pred_iou_thresh": -1.0,
    "stability_score_thresh": -1.0,
    "box_nms_thresh": 1.0,
    "crop_nms_thresh": 1.0,
}


@pytest.fixture(scope="module")
def sam(random_sam):
    """A random Sam whose masks lie around their points, so that masks, boxes and scores differ."""
    sam = random_sam()
    decoder, prompts = sam.mask_decoder, sam.prompt_encoder
    predict = decoder.predict_masks
    sizes = torch.tensor([1.0, 0.9, 0.8, 0.7])[:, None, None]

    def predict_near_point(image_embeddings, image_pe, sparse_prompt_embeddings, dense_prompt_embeddings):
        masks, scores = predict(image_embeddings, image_pe, sparse_prompt_embeddings, dense_prompt_embeddings)
        point = sparse_prompt_embeddings[:, 0] - prompts.point_embeddings[1].weight
        nearness = torch.einsum("bc,chw->bhw", point, image_pe[0]) / image_pe[0, :, 0, 0].square().sum()
        nearness = torch.nn.functional.interpolate(nearness[:, None], masks.shape[-2:], mode="bicubic")
        return 8 * (nearness - 0.8 * sizes) + 60 * masks, 20 * scores

    with torch.no_grad():
        prompts.pe_layer.positional_encoding_gaussian_matrix.mul_(0.6)
    decoder.predict_masks = predict_near_point
    return sam


@pytest.fixture(scope="module")
def image(random_image):
    return random_image(0, 48, 60)


NOTHING = {"stability_score_thresh": 1.0, "stability_score_offset": 100.0}  # no logit is so far from zero


SETTINGS = {
    "everything passes": {},
    "some pass": {"pred_iou_thresh": 1.0, "stability_score_thresh": 0.3},
    "overlaps go": {"box_nms_thresh": 0.7},
    "crops": {"crop_n_layers": 1, "crop_n_points_downscale_factor": 2, "crop_nms_thresh": 0.5},
    "small batches": {"points_per_batch": 3},
    "small regions go": {"min_mask_region_area": 30},
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


def test_every_setting_compared_above_matters(sam, image):
    found = {}
    for name, settings in SETTINGS.items():
        masks = MaskGenerator(sam, **PERMISSIVE | settings).generate(image)[0].to_masks()
        found[name] = sorted(mask.tobytes() for mask in masks)
        assert len(set(found[name])) > 5
        assert masks.sum(axis=0).max() > 1
    same = [name for name in SETTINGS if found[name] == found["everything passes"]]
    assert same == ["everything passes", "small batches"]


@pytest.mark.parametrize("settings", [{}, {"min_mask_region_area": 60}, {"crop_n_layers": 1}], ids=str)
def test_an_image_in_which_nothing_is_found_has_zero_masks(sam, image, settings):
    atoms, records = MaskGenerator(sam, **PERMISSIVE | NOTHING | settings).generate(image)
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
    monkeypatch.setattr(segmenter, "_generator", SimpleNamespace(find=lambda image, whole: lambda: seen.append(image)))
    segmenter.segment(image)
    assert np.array_equal(seen[0], image[..., [2, 1, 0]])


def test_the_recipe_names_the_checkpoint_and_every_setting_as_json(sam):
    recipe = SamSegmenter(sam, "f" * 64, "bgr", points_per_side=7).recipe()
    assert recipe == {"name": "sam", "checkpoint": "f" * 64, "channel_order": "bgr"} | SAM_SETTINGS | {
        "points_per_side": 7
    }
    assert json.loads(json.dumps(recipe)) == recipe

"""Settings of the mask generator in Python: what is refused, and that what is taken runs."""

from __future__ import annotations

import numpy as np
import pytest

from samdeblur.pipeline import MaskGenerator, SettingsError
from samdeblur.pipeline.segmenters.bounds import BOUNDS, check_settings
from samdeblur.pipeline.segmenters.mask_generator import SAM_SETTINGS

NO_GRID = {"points_per_side": None}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"points_per_side": 2, "crop_n_layers": 2, "crop_n_points_downscale_factor": 2},
            "no point for the smallest crops",
        ),
        ({"crop_n_layers": 40}, "crop_n_layers: must be from 0 to 6, is 40"),
        ({"crop_n_layers": -1}, "crop_n_layers"),
        ({"crop_n_layers": 6}, "points on every image"),
        ({"crop_n_layers": 1.5}, "whole number, is 1.5"),
        ({"crop_n_layers": True}, "whole number"),
        ({"points_per_side": "32"}, "whole number, is '32'"),
        ({"points_per_side": np.nan}, "whole number"),
        ({"points_per_batch": None}, "points_per_batch"),
        ({"points_per_batch": 1 << 40}, "points_per_batch"),
        ({"crop_overlap_ratio": 1.5}, "crop_overlap_ratio: must be from 0.0 to 0.9"),
        ({"box_nms_thresh": 7}, "box_nms_thresh"),
        ({"crop_nms_thresh": -0.1}, "crop_nms_thresh"),
        ({"min_mask_region_area": -1}, "min_mask_region_area"),
        ({"pred_iou_thresh": float("nan")}, "pred_iou_thresh: must be from -1.0 to 1.0, is nan"),
        ({"stability_score_thresh": float("-inf")}, "stability_score_thresh"),
        ({"stability_score_offset": float("inf")}, "stability_score_offset"),
        ({"crop_n_points_downscale_factor": 0}, "crop_n_points_downscale_factor"),
        (NO_GRID, "points_per_side or point_grids"),
        ({"point_grids": [np.full((1, 2), 0.5)]}, "not both"),
        (NO_GRID | {"point_grids": []}, "0 grids for 1"),
        (NO_GRID | {"point_grids": "abc"}, "a list with a grid"),
        (NO_GRID | {"point_grids": [[]]}, "grid 0 is not a list of points"),
        (NO_GRID | {"point_grids": [[[0.5, 0.5, 0.5]]]}, "grid 0 is not"),
        (NO_GRID | {"point_grids": [[["a", "b"]]]}, "grid 0 is not"),
        (NO_GRID | {"point_grids": [[[0.5, 0.5]], [[0.5, 1.5]]], "crop_n_layers": 1}, "grid 1 has points outside"),
        (NO_GRID | {"point_grids": [[[0.5, float("nan")]]]}, "grid 0 has points outside"),
    ],
    ids=str,
)
def test_settings_out_of_bounds_are_refused_before_the_model_is_touched(settings, words):
    with pytest.raises(SettingsError) as refused:
        MaskGenerator(None, **settings)
    assert words in str(refused.value)


def test_every_setting_has_bounds_on_both_sides():
    assert {*BOUNDS, "point_grids"} == SAM_SETTINGS.keys()
    check_settings(SAM_SETTINGS)
    for name, bounds in BOUNDS.items():
        for value in bounds:
            changed = SAM_SETTINGS | {name: value}
            if changed["crop_n_layers"] < 6:
                check_settings(changed)
        for value in (bounds[0] - 1, bounds[1] + 1):
            with pytest.raises(SettingsError, match=name):
                check_settings(SAM_SETTINGS | {name: value})


@pytest.mark.parametrize(
    "settings",
    [
        {"points_per_side": 4, "crop_n_layers": 2, "crop_n_points_downscale_factor": 2},
        {"points_per_side": 1, "points_per_batch": 65536},
        {"points_per_side": np.int64(3), "box_nms_thresh": np.float32(0), "crop_n_layers": 1, "crop_nms_thresh": 1},
        {"points_per_side": 2, "stability_score_offset": 0, "pred_iou_thresh": -1, "stability_score_thresh": -1},
        {"points_per_side": 2, "crop_n_layers": 1, "crop_overlap_ratio": 0.9, "min_mask_region_area": 1 << 28},
        NO_GRID | {"point_grids": [[[0, 0], [1, 1]]]},
        NO_GRID | {"point_grids": [np.full((3, 2), 0.5), np.zeros((1, 2), np.float32)], "crop_n_layers": 1},
    ],
    ids=str,
)
def test_settings_at_their_bounds_run(random_sam, random_image, settings):
    atoms, records = MaskGenerator(random_sam(), **settings).generate(random_image(0, 40, 60))
    assert atoms.shape == (40, 60)
    assert all(len(column) == atoms.n_masks for column in records.values())

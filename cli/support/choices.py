"""What options offer, said again where it costs nothing to load; a test compares it with the modules it is of."""

from __future__ import annotations

from typing import Any

# Of samdeblur-prep.
SAM_SETTINGS: dict[str, Any] = {
    "points_per_side": 32,
    "points_per_batch": 64,
    "pred_iou_thresh": 0.88,
    "stability_score_thresh": 0.95,
    "stability_score_offset": 1.0,
    "box_nms_thresh": 0.7,
    "crop_n_layers": 0,
    "crop_nms_thresh": 0.7,
    "crop_overlap_ratio": 512 / 1500,
    "crop_n_points_downscale_factor": 1,
    "point_grids": None,
    "min_mask_region_area": 0,
}
BUNDLED_SETTINGS: dict[str, Any] = {
    "points_per_side": 24,
    "pred_iou_thresh": 0.5,
    "stability_score_thresh": 0.9,
    "box_nms_thresh": 0.5,
}
# Of Segment Anything 2 and later families: where their defaults are others, and settings they alone have.
SAM2_SETTINGS: dict[str, Any] = {
    "pred_iou_thresh": 0.8,
    "mask_threshold": 0.0,
    "use_m2m": False,
    "multimask_output": True,
}
PATIENCE = 300.0

# Of several commands.
PRECISIONS = ("float32", "tf32", "bfloat16", "float16")
IMPORTS = ("coco-instances", "coco-results", "sa-1b", "amg", "parquet", "grey-png", "npz")
EXPORTS = ("coco-instances", "coco-results", "sa-1b", "ome-zarr", "parquet")

# Of samdeblur-train and samdeblur-eval.
METHODS = ("none", "cat", "map", "map-dropout")
OVERLAP = 64
COLLAPSE_DB = 3.0
TABLES = {"markdown": "table.md", "csv": "table.csv", "latex": "table.tex"}
RESAMPLES = 10_000
RESULT_FORMATS = ("png", "jpg", "webp")
COMPARE_PAGE = "compare.html"

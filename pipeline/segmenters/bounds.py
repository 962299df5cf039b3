"""What settings of the mask generator may be, each alone and all together. Nothing here loads the network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np

from samdeblur.pipeline.segmenters.base import SettingsError
from samdeblur.storage.plurals import counted

# The least and the most that each may be, both taken; beyond them a run ends, or never does, without one mask.
BOUNDS: Mapping[str, tuple[int, int] | tuple[float, float]] = {
    "points_per_side": (1, 1024),
    "points_per_batch": (1, 65536),
    "pred_iou_thresh": (-1.0, 1.0),
    "stability_score_thresh": (-1.0, 1.0),
    "stability_score_offset": (0.0, 100.0),
    "box_nms_thresh": (0.0, 1.0),
    "crop_n_layers": (0, 6),
    "crop_nms_thresh": (0.0, 1.0),
    "crop_overlap_ratio": (0.0, 0.9),
    "crop_n_points_downscale_factor": (1, 1024),
    "min_mask_region_area": (0, 1 << 28),
}
# Of Segment Anything 2 and later families alone.
MASK_THRESHOLDS = (-32.0, 32.0)
SWITCHES = ("use_m2m", "multimask_output")
MAX_REACH = 16  # pixels that a border may be moved by, to an edge of the image
MAX_POINTS = 1 << 20  # of an image, all its crops together; the default has 1,024


def number_of_crops(layers: int) -> int:
    """The image itself and its crops: in each layer four times as many as in the one before."""
    return sum(4**layer for layer in range(layers + 1))


def check_settings(settings: Mapping[str, Any], called: Callable[[str], str] = str) -> None:
    """Refuse settings with which no mask is found, or none before years are over.

    Args:
        settings: all of SAM_SETTINGS, and those that a family has beside them.
        called: what the reader calls a setting.

    Raises:
        SettingsError: naming the setting, or those that do not go together.
    """
    for name, bounds in BOUNDS.items():
        if settings[name] is not None or name != "points_per_side":
            _check_number(called(name), settings[name], bounds)
    if "mask_threshold" in settings:
        _check_number(called("mask_threshold"), settings["mask_threshold"], MASK_THRESHOLDS)
    for name in SWITCHES:
        if not isinstance(settings.get(name, False), bool):
            raise SettingsError(f"{called(name)}: must be true or false, is {settings[name]!r}")
    side, grids, layers = (settings[name] for name in ("points_per_side", "point_grids", "crop_n_layers"))
    if (side is None) == (grids is None):
        raise SettingsError(f"give {called('points_per_side')} or {called('point_grids')}, not both")
    if grids is not None:
        counts = _count_grids(called("point_grids"), grids, layers)
    else:
        factor = settings["crop_n_points_downscale_factor"]
        counts = [int(side / factor**layer) ** 2 for layer in range(layers + 1)]
        if not counts[-1]:
            divided = f"{called('points_per_side')} {side}, divided {counted(layers, 'time')} by"
            raise SettingsError(
                f"{divided} {called('crop_n_points_downscale_factor')} {factor}, leaves no point for the smallest "
                f"crops; take more points, fewer {called('crop_n_layers')} or a smaller factor"
            )
    points = sum(4**layer * count for layer, count in enumerate(counts))
    if points > MAX_POINTS:
        raise SettingsError(
            f"{called('points_per_side' if grids is None else 'point_grids')} with {called('crop_n_layers')} {layers}: "
            f"{points:,} points on every image; take at most {MAX_POINTS:,}"
        )


def _check_number(name: str, value: Any, bounds: tuple[int, int] | tuple[float, float]) -> None:
    least, most = bounds
    whole = isinstance(least, int)
    if isinstance(value, bool) or not isinstance(value, Integral if whole else Real):
        raise SettingsError(f"{name}: must be a {'whole ' if whole else ''}number, is {value!r}")
    if not least <= float(value) <= most:  # which nan is not
        raise SettingsError(f"{name}: must be from {least} to {most}, is {value}")


def _count_grids(name: str, grids: Any, layers: int) -> list[int]:
    """Points of the grid of each layer."""
    if not isinstance(grids, Sequence) or isinstance(grids, str | bytes):
        raise SettingsError(f"{name}: must be a list with a grid for each layer of crops")
    if len(grids) != layers + 1:
        raise SettingsError(f"{name}: {counted(len(grids), 'grid')} for {counted(layers + 1, 'layer')} of crops")
    counts = []
    for number, grid in enumerate(grids):
        try:
            points = np.asarray(grid, np.float64)
        except (TypeError, ValueError):
            points = np.empty(0)
        if points.ndim != 2 or points.shape[1] != 2 or not len(points):
            raise SettingsError(f"{name}: grid {number} is not a list of points [x, y]")
        if not ((points >= 0) & (points <= 1)).all():
            raise SettingsError(f"{name}: grid {number} has points outside of 0..1")
        counts.append(len(points))
    return counts

"""Segmenters: from a picture to overlapping masks and their records."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from segment_anything import SamAutomaticMaskGenerator
from segment_anything.modeling import Sam

from samdeblur.storage import AtomMap
from samdeblur.storage.layout import RECORD_COLUMNS

Records = dict[str, NDArray[np.float64]]


class Segmenter(Protocol):
    """Anything that finds masks."""

    def recipe(self) -> Mapping[str, Any]:
        """Name and every setting that changes the result, as JSON values; part of a store's recipe."""
        ...

    def segment(self, image: NDArray[np.uint8]) -> tuple[AtomMap, Records]:
        """Masks of an (H, W, 3) uint8 RGB image, any number of them, and record columns of shape (M,)."""
        ...


# Settings of SamAutomaticMaskGenerator and their defaults; its output format is not one.
SAM_SETTINGS: dict[str, Any] = {
    name: parameter.default
    for name, parameter in inspect.signature(SamAutomaticMaskGenerator).parameters.items()
    if name not in ("model", "output_mode")
}


# Those that suit the bundled model, by the measurements in its card.
BUNDLED_SETTINGS: dict[str, Any] = {
    "points_per_side": 24,
    "pred_iou_thresh": 0.25,
    "stability_score_thresh": 0.6,
    "stability_score_offset": 0.3,
}


class SettingsError(ValueError):
    """Settings with which no mask can be generated."""


class MaskGenerator:
    """Segment Anything's automatic mask generation.

    Args:
        sam: a segment_anything model, on the device it is to run on.
        settings: those of SamAutomaticMaskGenerator (`SAM_SETTINGS`), with its defaults.

    Raises:
        TypeError: a setting SamAutomaticMaskGenerator does not have.
        SettingsError: a setting out of its range.
    """

    def __init__(self, sam: Sam, **settings: Any) -> None:
        unknown = settings.keys() - SAM_SETTINGS.keys()
        if unknown:
            raise TypeError(f"unknown settings {', '.join(sorted(unknown))}; known: {', '.join(SAM_SETTINGS)}")
        self.settings = SAM_SETTINGS | settings
        check_settings(self.settings)
        self._generator = _Generator(sam, **settings)

    @torch.inference_mode()
    def generate(self, image: NDArray[np.uint8]) -> tuple[AtomMap, Records]:
        """Masks and records of an (H, W, 3) uint8 RGB image, in the order of SamAutomaticMaskGenerator.

        Boxes are x, y, width, height in pixels as it gives them: last minus first pixel, one less than the store's.
        An image in which nothing is found gives zero masks.
        """
        found = self._generator.generate(image)
        atoms = AtomMap.from_masks([record["segmentation"] for record in found], image.shape[:2])
        rows = np.array([_row(record) for record in found], np.float64).reshape(len(found), len(RECORD_COLUMNS))
        return atoms, {name: rows[:, column] for column, name in enumerate(RECORD_COLUMNS)}


class _Generator(SamAutomaticMaskGenerator):
    """SamAutomaticMaskGenerator, which stumbles over a crop in which nothing is found."""

    def _process_crop(self, *arguments: Any) -> Any:
        found = super()._process_crop(*arguments)
        found["crop_boxes"] = found["crop_boxes"].reshape(-1, 4)
        return found


def check_settings(settings: Mapping[str, Any]) -> None:
    """Raise SettingsError unless mask generation can run with these settings."""
    lowest = {"points_per_side": 1, "points_per_batch": 1, "crop_n_layers": 0, "crop_n_points_downscale_factor": 1}
    for name, low in lowest.items():
        if settings[name] is not None and settings[name] < low:
            raise SettingsError(f"{name}: must be at least {low}, is {settings[name]}")
    if (settings["points_per_side"] is None) == (settings["point_grids"] is None):
        raise SettingsError("give points_per_side or point_grids, not both")
    if settings["point_grids"] is not None and len(settings["point_grids"]) != settings["crop_n_layers"] + 1:
        raise SettingsError(
            f"point_grids: {len(settings['point_grids'])} grids for {settings['crop_n_layers'] + 1} layers of crops"
        )


def _row(record: Mapping[str, Any]) -> list[float]:
    """A record of SamAutomaticMaskGenerator in the order of RECORD_COLUMNS."""
    return [
        record["area"],
        *record["bbox"],
        record["predicted_iou"],
        record["stability_score"],
        *record["point_coords"][0],
        *record["crop_box"],
    ]


class SamSegmenter:
    """Segment Anything as a stage.

    Args:
        sam: the model.
        checkpoint_sha256: hex digest of its weights, for the recipe.
        channel_order: "rgb" as the model was trained, or "bgr" as the released SAM-Deblur masks were made.
        settings: those of MaskGenerator.
    """

    def __init__(
        self, sam: Sam, checkpoint_sha256: str, channel_order: Literal["rgb", "bgr"] = "rgb", **settings: Any
    ) -> None:
        self._generator = MaskGenerator(sam, **settings)
        self._checkpoint = checkpoint_sha256
        self._channel_order = channel_order

    def recipe(self) -> Mapping[str, Any]:
        return sam_recipe(self._checkpoint, self._channel_order, self._generator.settings)

    def segment(self, image: NDArray[np.uint8]) -> tuple[AtomMap, Records]:
        if self._channel_order == "bgr":
            image = np.ascontiguousarray(image[..., ::-1])
        return self._generator.generate(image)


def sam_recipe(checkpoint_sha256: str, channel_order: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe of a SamSegmenter, which needs no model to be written."""
    return {"name": "sam", "checkpoint": checkpoint_sha256, "channel_order": channel_order, **settings}

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


class MaskGenerator:
    """Segment Anything's automatic mask generation.

    Args:
        sam: a segment_anything model, on the device it is to run on.
        settings: those of SamAutomaticMaskGenerator (`SAM_SETTINGS`), with its defaults.

    Raises:
        TypeError: a setting SamAutomaticMaskGenerator does not have.
    """

    def __init__(self, sam: Sam, **settings: Any) -> None:
        unknown = settings.keys() - SAM_SETTINGS.keys()
        if unknown:
            raise TypeError(f"unknown settings {', '.join(sorted(unknown))}; known: {', '.join(SAM_SETTINGS)}")
        self.settings = SAM_SETTINGS | settings
        self._generator = SamAutomaticMaskGenerator(sam, **settings)

    @torch.inference_mode()
    def generate(self, image: NDArray[np.uint8]) -> tuple[AtomMap, Records]:
        """Masks and records of an (H, W, 3) uint8 RGB image, in the order of SamAutomaticMaskGenerator.

        Boxes are x, y, width, height in pixels. An image in which nothing is found gives zero masks.
        """
        found = self._generator.generate(image)
        atoms = AtomMap.from_masks([record["segmentation"] for record in found], image.shape[:2])
        rows = np.array([_row(record) for record in found], np.float64).reshape(len(found), len(RECORD_COLUMNS))
        return atoms, {name: rows[:, column] for column, name in enumerate(RECORD_COLUMNS)}


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

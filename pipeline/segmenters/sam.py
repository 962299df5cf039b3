"""Segment Anything as a segmenter."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from segment_anything.modeling import Sam

from samdeblur.pipeline.segmenters.base import Records
from samdeblur.pipeline.segmenters.families.base import Adapter
from samdeblur.pipeline.segmenters.families.recognise import open_model
from samdeblur.pipeline.segmenters.mask_generator import Crop, Known, MaskGenerator
from samdeblur.pipeline.segmenters.speed import EXACT, Speed
from samdeblur.storage import AtomMap

# Those that suit the bundled model, by the measurements in its card.
BUNDLED_SETTINGS: dict[str, Any] = {
    "points_per_side": 24,
    "pred_iou_thresh": 0.5,
    "stability_score_thresh": 0.9,
    "box_nms_thresh": 0.5,
}


class SamSegmenter:
    """Segment Anything as a stage.

    Args:
        sam: the model, of any family.
        checkpoint_sha256: hex digest of its weights, for the recipe.
        channel_order: "rgb" as the model was trained, or "bgr" as the released SAM-Deblur masks were made.
        speed: how the network computes.
        origin: where its weights were published, repository@revision.
        settings: those of MaskGenerator.
    """

    bytes_per_pixel = 6.0  # of memory where nothing is found; each mask that is kept adds an eighth (docs/masks.md)

    def __init__(
        self,
        sam: Sam | Adapter,
        checkpoint_sha256: str,
        channel_order: Literal["rgb", "bgr"] = "rgb",
        speed: Speed = EXACT,
        origin: str = "",
        **settings: Any,
    ) -> None:
        self._generator = MaskGenerator(sam, speed, **settings)
        self._family, self._origin = sam.family if isinstance(sam, Adapter) else "sam", origin
        self._checkpoint = checkpoint_sha256
        self._channel_order = channel_order

    @property
    def splits(self) -> int:
        """Times so far that the masks of an image were brought to full size in smaller parts for lack of GPU memory."""
        return self._generator.splits

    def recipe(self) -> Mapping[str, Any]:
        settings = self._generator.settings
        return sam_recipe(self._checkpoint, self._channel_order, settings, self._family, self._origin)

    def segment(self, image: NDArray[np.uint8], embedding: Known = None) -> tuple[AtomMap, Records]:
        """As any segmenter; with what `embed` gave of the image, if that was called."""
        return self.find(image, embedding)()

    def find(self, image: NDArray[np.uint8], embedding: Known = None) -> Callable[[], tuple[AtomMap, Records]]:
        """The part of `segment` that needs the model; what it returns does the rest."""
        return self._generator.find(self._ordered(image), embedding)

    def embed(self, images: Sequence[NDArray[np.uint8]]) -> list[Crop]:
        """Images through the image encoder together. Raises ValueError for one that cannot be."""
        return self._generator.embed([self._ordered(image) for image in images])

    def embed_crops(self, image: NDArray[np.uint8], whole: Crop | None = None) -> list[Crop]:
        """An image and all its crops, of which that of the whole may be there. Raises ValueError as `embed`."""
        return self._generator.embed_crops(self._ordered(image), whole)

    def kept_crops(self, size: tuple[int, int], features: Sequence[NDArray[np.floating[Any]]]) -> list[Crop]:
        """What `embed_crops` gave, from what `pack` made of it."""
        return self._generator.kept_crops(size, features)

    def _ordered(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return np.ascontiguousarray(image[..., ::-1]) if self._channel_order == "bgr" else image


class Checkpoint(Protocol):
    """Weights whose digest is known."""

    @property
    def sha256(self) -> str: ...

    @property
    def origin(self) -> str: ...

    def check(self) -> Path:
        """The path, if the file is still what it was."""
        ...


def open_sam(
    device: torch.device,
    weights: Checkpoint,
    channel_order: Literal["rgb", "bgr"] = "rgb",
    speed: Speed = EXACT,
    **settings: Any,
) -> SamSegmenter:
    """Raises FileNotFoundError, CheckpointError, SettingsError, SegmenterMissing."""
    model = open_model(weights.check(), device, speed)
    return SamSegmenter(model, weights.sha256, channel_order, speed, weights.origin, **settings)


def sam_recipe(
    checkpoint_sha256: str, channel_order: str, settings: Mapping[str, Any], family: str = "sam", origin: str = ""
) -> dict[str, Any]:
    """The recipe of a SamSegmenter, which needs no model to be written."""
    of = {"name": family, "checkpoint": checkpoint_sha256, "channel_order": channel_order}
    return of | ({"origin": origin} if origin else {}) | dict(settings)

"""The three calls that mask generation makes of a Segment Anything model, whatever its family."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from samdeblur.pipeline.segmenters.speed import EXACT, Speed


@dataclass(frozen=True)
class Embedding:
    """What an encoder made of an image or a crop of it.

    Attributes:
        size: (H, W) of it.
        input_size: (H, W) of it at the model's size, without padding.
        features: as the decoder wants them, each (1, ...).
    """

    size: tuple[int, int]
    input_size: tuple[int, int]
    features: tuple[Tensor, ...]


class Adapter(ABC):
    """A Segment Anything model on its device.

    Attributes:
        family: one word, for recipes.
        defaults: of the settings of mask generation, where they are not those of segment-anything's generator; the
            settings that this family's generator has beside those are in here as well.
        masks_per_point: that `decode` gives by default.
        point_dtype: in which the family's generator keeps points.
        mask_threshold: of logits, above which a pixel is of a mask.
        speed: how the network computes.
    """

    family: str
    defaults: Mapping[str, Any] = {}
    masks_per_point = 3
    point_dtype = torch.float64
    mask_threshold = 0.0
    speed: Speed = EXACT

    @property
    @abstractmethod
    def device(self) -> torch.device: ...

    @abstractmethod
    def input_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """(H, W) at the model's size, without padding, of what has (H, W).

        Raises ValueError when nothing is left of it there.
        """

    @abstractmethod
    def encode(self, pieces: Sequence[NDArray[np.uint8]]) -> list[Embedding]:
        """(H, W, 3) uint8 RGB images or crops through the encoder in one call. Raises ValueError as `input_size`."""

    @abstractmethod
    def decode(
        self, embedding: Embedding, points: NDArray[np.float64], prompts: Tensor | None = None, several: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Masks at (N, 2) points x, y, in pixels of what was encoded.

        Args:
            prompts: (N, h, w) logits of earlier masks to begin with, where the family takes them.
            several: masks to a point, else the best one.

        Returns:
            (masks, h, w) float32 logits at low resolution and (masks,) float32 predicted IoU, a point after the other.
        """

    def kept(self, size: tuple[int, int], features: Sequence[NDArray[np.floating[Any]]]) -> Embedding:
        """An embedding again of what was kept of one, for (H, W) and maps without their first axis."""
        maps = (torch.as_tensor(each, dtype=torch.float32, device=self.device)[None] for each in features)
        return Embedding(size, self.input_size(size), tuple(maps))

    def full_size(self, logits: Tensor, embedding: Embedding) -> Tensor:
        """(n, H, W) float32 logits of (n, h, w), of families that stretch images to a square."""
        return F.interpolate(logits[None], embedding.size, mode="bilinear", align_corners=False)[0]

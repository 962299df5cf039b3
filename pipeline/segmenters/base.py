"""What every segmenter does: from an image to overlapping masks and their records."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from samdeblur.storage import AtomMap

Records = dict[str, NDArray[np.float64]]  # columns of shape (M,)


class SettingsError(ValueError):
    """Settings with which no mask can be found."""


class Segmenter(Protocol):
    """Anything that finds masks."""

    def recipe(self) -> Mapping[str, Any]:
        """Name and every setting that changes the result, as JSON values; part of a store's recipe."""
        ...

    def segment(self, image: NDArray[np.uint8]) -> tuple[AtomMap, Records]:
        """Masks of an (H, W, 3) uint8 RGB image, any number of them, and record columns of shape (M,)."""
        ...

"""What every segmenter does: from an image to overlapping masks and their records (docs/segmenters.md)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from samdeblur.storage import AtomMap

Records = dict[str, NDArray[np.float64]]  # columns of shape (M,)
Found = tuple[AtomMap, Records]


class SettingsError(ValueError):
    """Settings with which no mask can be found."""


class Segmenter(Protocol):
    """Anything that finds masks.

    One that has an attribute `bytes_per_pixel`, the least memory that it takes for each pixel of an image, is not given
    images for which a worker has too little.
    """

    def recipe(self) -> Mapping[str, Any]:
        """Name and every setting that changes the result, as JSON values; part of a store's recipe."""
        ...

    def segment(self, image: NDArray[np.uint8]) -> Found:
        """Masks of an (H, W, 3) uint8 RGB image, any number of them, and record columns of shape (M,)."""
        ...


@runtime_checkable
class Finds(Protocol):
    """A segmenter that gives the device back early."""

    def find(self, image: NDArray[np.uint8], embedding: Any = None) -> Callable[[], Found]:
        """The part of `segment` that needs the device; what it returns does the rest, in another thread."""
        ...


@runtime_checkable
class Embeds(Finds, Protocol):
    """A segmenter whose encoder takes several images at once."""

    def embed(self, images: Sequence[NDArray[np.uint8]]) -> Sequence[Any]:
        """What `find` takes as the embedding of each image."""
        ...


class TrueMasks:
    """The masks that a source knows to be true, instead of found ones."""

    def recipe(self) -> Mapping[str, Any]:
        return {"name": "true"}

    def segment(self, image: NDArray[np.uint8]) -> Found:
        raise SettingsError(
            "--segmenter true-masks is for worlds alone, whose true masks are known; choose another segmenter"
        )


def true_masks(device: object) -> TrueMasks:
    return TrueMasks()

"""What a network is evaluated on: images with masks, out of a store or found on the spot."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from samdeblur.storage import AtomMap, MaskStore, StoreError


class Sample(NamedTuple):
    """One image: (H, W, 3) uint8 RGB pictures, the sharp one where there is one."""

    blurred: NDArray[np.uint8]
    sharp: NDArray[np.uint8] | None


class Masks(NamedTuple):
    """The masks of one image, and what the segmenter said of them: column -> (M,)."""

    atoms: AtomMap
    records: Mapping[str, NDArray[np.float64]]


class UnusableImage(ValueError):
    """An image that cannot be evaluated; the rest of its set can."""


class ImageSet(Protocol):
    """Images to evaluate on."""

    dataset: str
    split: str
    recipe: str  # fingerprint of the masks; empty where there are none

    @property
    def keys(self) -> Sequence[str]: ...

    @property
    def unready(self) -> int:
        """Images that belong to the set and cannot be given."""
        ...

    def sample(self, key: str) -> Sample:
        """Raises UnusableImage."""
        ...

    def masks(self, key: str, blurred: NDArray[np.uint8]) -> Masks | None: ...


class StoreSet:
    """The images of a store that are ready.

    Raises StoreError for a store without images, or with none that is ready.
    """

    def __init__(self, store: MaskStore) -> None:
        store.require_images()
        self.store = store
        self.dataset, self.split, self.recipe = store.header.dataset, store.header.split, store.header.fingerprint
        self.keys: Sequence[str] = store.ready_keys
        self.unready = len(store) - len(self.keys)
        if not self.keys:
            raise StoreError(f"{store.path}: no image is ready; finish the preparation")

    def sample(self, key: str) -> Sample:
        return Sample(self.store.image("blurred", key), self.store.image("sharp", key))

    def masks(self, key: str, blurred: NDArray[np.uint8]) -> Masks:
        return Masks(self.store.atoms(key), self.store.records(key))


class LooseSet:
    """Images without a store.

    Args:
        recipe: fingerprint of what `segment` finds.
        read: gives the pictures of a key; raises UnusableImage.
        segment: finds the masks of a blurred picture, as at test time in the paper; None where masks are not wanted.
    """

    unready = 0

    def __init__(
        self,
        dataset: str,
        split: str,
        recipe: str,
        keys: Sequence[str],
        read: Callable[[str], Sample],
        segment: Callable[[NDArray[np.uint8]], tuple[AtomMap, Mapping[str, NDArray[np.float64]]]] | None,
    ) -> None:
        self.dataset, self.split, self.recipe, self.keys = dataset, split, recipe, keys
        self.sample = read
        self._segment = segment

    def masks(self, key: str, blurred: NDArray[np.uint8]) -> Masks | None:
        return None if self._segment is None else Masks(*self._segment(blurred))

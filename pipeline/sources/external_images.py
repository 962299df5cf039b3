"""The images of a dataset for masks shared without: joined by name, checked by digest, the last ones kept."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samdeblur.pipeline.sources.base import BadImage, Source
from samdeblur.pipeline.sources.dataset import keys_in_both, read_own
from samdeblur.storage import ExternalImageError, MaskStore
from samdeblur.storage.names import Names

KEPT_BYTES = 64 << 20  # decoded images kept by one process


def with_dataset(store: MaskStore, source: Source, name: str) -> MaskStore:
    """A store whose images are read from a dataset; those that the dataset lacks are not ready in it.

    Args:
        source: the split of the dataset that the masks were made of.
        name: what messages call the dataset, such as its folder.

    Raises:
        StoreError: no image of the store in it that is ready, or digests of another kind.
    """
    shared = keys_in_both(store, source, store.ready_keys or store.keys)
    return store.with_external_images(DatasetImages(source.subset(dict.fromkeys(shared.values())), name))


class DatasetImages:
    """The pairs of a dataset as the images of a store (`storage.store.ExternalImages`).

    Blurred and sharp are decoded together, whole, and compared with the store each time: size, and digest if it knows
    one. The last pairs are kept, KEPT_BYTES of them but at least one, so that both images, and several crops of
    them, take one decoding. What is kept stays behind when this is sent to another process.
    """

    def __init__(self, source: Source, name: str) -> None:
        self.source, self.name = source, name
        self._names = Names(source.keys)
        self._kept: OrderedDict[tuple[str, str], dict[str, NDArray[np.uint8]]] = OrderedDict()
        self._kept_bytes = 0

    def __reduce__(self) -> tuple[Any, ...]:
        return DatasetImages, (self.source, self.name)

    def __contains__(self, key: object, /) -> bool:
        return isinstance(key, str) and self._names.find(key) is not None

    def files(self, key: str) -> Sequence[Path]:
        return getattr(self.source, "files", {}).get(key, ())

    def image(self, store: MaskStore, name: str, key: str) -> NDArray[np.uint8]:
        """See `ExternalImages`. Raises also SourceLost, when the disk that the dataset lies on cannot be read."""
        place = str(store.path), key
        if place in self._kept:
            self._kept.move_to_end(place)
        else:
            self._keep(place, self._read(store, key))
        return self._kept[place][name]

    def _read(self, store: MaskStore, key: str) -> dict[str, NDArray[np.uint8]]:
        there = self._names.find(key)
        if there is None:
            raise ExternalImageError(f"{self.name}: no image of {key} there, which {store.path} has masks of; add it")
        try:
            pair = read_own(store, self.source, key, there)
        except BadImage as error:
            raise ExternalImageError(
                f"{self.name}: {key}: {error}; restore the image, or take it and its counterpart away to go without"
            ) from error
        return {"blurred": pair.blurred, "sharp": pair.sharp}

    def _keep(self, place: tuple[str, str], pair: dict[str, NDArray[np.uint8]]) -> None:
        self._kept[place] = pair
        self._kept_bytes += _size(pair)
        while self._kept_bytes > KEPT_BYTES and len(self._kept) > 1:
            self._kept_bytes -= _size(self._kept.popitem(last=False)[1])


def _size(pair: dict[str, NDArray[np.uint8]]) -> int:
    return sum(image.nbytes for image in pair.values())

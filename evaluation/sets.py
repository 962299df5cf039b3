"""What a network is evaluated on: images with masks, out of a store or found on the spot."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from samdeblur.storage import AtomMap, ExternalImageError, MaskStore, StoreError
from samdeblur.storage.files import file_stamp, sha256_file
from samdeblur.storage.format.layout import mask_kind


class Sample(NamedTuple):
    """One image: blurred and sharp, (H, W, 3) uint8 RGB; the sharp one where there is one."""

    blurred: NDArray[np.uint8]
    sharp: NDArray[np.uint8] | None


class Masks(NamedTuple):
    """The masks of one image, and what the segmenter said of them: column -> (M,)."""

    atoms: AtomMap
    records: Mapping[str, NDArray[np.float64]]


class UnusableImage(ValueError):
    """An image that cannot be evaluated; the rest of its set can."""


class ImageSet(Protocol):
    """Images to evaluate on.

    Attributes:
        recipe: fingerprint of the masks; empty where there are none.
        seal: of the store the images are in; empty without one.
        segmenter: what the masks are of, in a word and the start of a digest; empty where there are none.
        stored: whether masks lie ready, so that they cost nothing where the network does without.
        left_out: images that belong to the set and cannot be given, with the reasons.
    """

    dataset: str
    split: str
    recipe: str
    seal: str
    segmenter: str
    stored: bool
    left_out: Mapping[str, str]

    @property
    def keys(self) -> Sequence[str]: ...

    def stamp(self, key: str) -> str:
        """What the content of an image goes by as long as it is the same: found in no time."""
        ...

    def content(self, key: str) -> str:
        """A digest of all that is looked at for an image, which a copy of it has too."""
        ...

    def sample(self, key: str) -> Sample:
        """Raises UnusableImage."""
        ...

    def masks(self, key: str, blurred: NDArray[np.uint8]) -> Masks | None: ...


class StoreSet:
    """The images of a store that are ready.

    Raises StoreError for a store without images, or with none that is ready.
    """

    stored = True

    def __init__(self, store: MaskStore) -> None:
        store.require_images()
        self.store = store
        self.dataset, self.split, self.recipe = store.header.dataset, store.header.split, store.header.fingerprint
        self.seal, self.segmenter = store.header.seal, mask_kind(store.header.recipe)
        self.keys: Sequence[str] = store.ready_keys
        if not self.keys:
            raise StoreError(f"{store.path}: no image is ready; finish the preparation")
        ready = set(self.keys)
        self.left_out: Mapping[str, str] = {key: store.why_not_ready(key) for key in store.keys if key not in ready}

    def stamp(self, key: str) -> str:
        return " ".join([self.store.content(key), *map(file_stamp, self.store.external_files(key))])

    def content(self, key: str) -> str:
        return _digest(self.store.content(key), self.store.external_files(key))

    def sample(self, key: str) -> Sample:
        try:
            return Sample(self.store.image("blurred", key), self.store.image("sharp", key))
        except ExternalImageError as error:
            raise UnusableImage(str(error)) from error

    def masks(self, key: str, blurred: NDArray[np.uint8]) -> Masks:
        return Masks(self.store.atoms(key), self.store.records(key))


class LooseSet:
    """Images without a store.

    Args:
        recipe: fingerprint of what `segment` finds.
        read: key -> its images; raises UnusableImage.
        segment: finds the masks of a blurred image, as at test time in the paper; None where masks are not wanted.
        files: key -> the files its images are read from.
        source: what else they depend on: where they come from if it is no file.
        segmenter: as of `ImageSet`.
    """

    stored, seal = False, ""
    left_out: Mapping[str, str] = {}

    def __init__(
        self,
        dataset: str,
        split: str,
        recipe: str,
        keys: Sequence[str],
        read: Callable[[str], Sample],
        segment: Callable[[NDArray[np.uint8]], tuple[AtomMap, Mapping[str, NDArray[np.float64]]]] | None,
        files: Mapping[str, Sequence[Path]] | None = None,
        source: str = "",
        segmenter: str = "",
    ) -> None:
        self.dataset, self.split, self.recipe, self.keys = dataset, split, recipe, keys
        self.segmenter = segmenter
        self.sample = read
        self._segment = segment
        self._files = files or {}
        self._of = f"{source} {recipe}"

    def stamp(self, key: str) -> str:
        return " ".join([self._of, *map(file_stamp, self._files.get(key, ()))])

    def content(self, key: str) -> str:
        return _digest(self._of, self._files.get(key, ()))

    def masks(self, key: str, blurred: NDArray[np.uint8]) -> Masks | None:
        return None if self._segment is None else Masks(*self._segment(blurred))


def _digest(of: str, files: Sequence[Path]) -> str:
    digest = hashlib.sha256(of.encode(errors="surrogateescape"))
    for path in files:
        try:
            digest.update(sha256_file(path))
        except OSError:
            digest.update(b"missing")
    return digest.hexdigest()

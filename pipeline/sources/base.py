"""What every source of image pairs gives, and how it says that it cannot."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from samdeblur.storage import AtomMap
from samdeblur.storage.decode import BadImage

__all__ = ["BadImage", "ImagePair", "Source", "SourceError", "SourceLost"]


class SourceError(ValueError):
    """A folder that holds no pairs, or whose pairs do not match."""


class SourceLost(OSError):
    """The place the images lie in cannot be read, now; this says nothing about an image.

    Like any OSError it carries `errno`, `strerror` and `filename`.
    """


@dataclass(frozen=True)
class ImagePair:
    """A blurred image and its sharp counterpart, (H, W, 3) uint8 RGB each, and the digest of the blurred source.

    `masks` are the true ones, of sources that know them.
    """

    blurred: NDArray[np.uint8]
    sharp: NDArray[np.uint8]
    digest: bytes
    masks: AtomMap | None = None


class Source(Protocol):
    """A dataset split that can be listed and read. Sent to workers, so small: `subset` narrows it to one block."""

    @property
    def dataset(self) -> str: ...
    @property
    def split(self) -> str: ...
    @property
    def keys(self) -> Sequence[str]:
        """Names of the images, sorted, unique."""
        ...

    @property
    def digest(self) -> str:
        """What `ImagePair.digest` is the SHA-256 of: "pixels", or "file" for sources decoders disagree on."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """Lines for a person about what is missing from the split."""
        ...

    def shape(self, key: str) -> tuple[int, int]:
        """Height and width of the blurred image, without decoding it. Raises BadImage or SourceLost."""
        ...

    def read(self, key: str) -> ImagePair:
        """Decode a pair. Raises BadImage or SourceLost."""
        ...

    def subset(self, keys: Iterable[str]) -> Source: ...

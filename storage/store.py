"""Reading a mask store: masks, records and images by key, whole or by window."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samdeblur.storage.atoms import AtomMap, check_window, from_window
from samdeblur.storage.commits import NO_SHARD
from samdeblur.storage.layout import (
    DONE,
    IMAGE_NAMES,
    PENDING,
    RECORD_COLUMNS,
    StoreError,
    read_header,
    unpack_text,
)
from samdeblur.storage.readers import open_reader, part_path

Window = tuple[int, int, int, int]


class ImageNotReady(KeyError):
    """The store knows the image but holds no masks of it: not prepared yet, or quarantined."""

    def __str__(self) -> str:
        return str(self.args[0])


class UnknownImage(ImageNotReady):
    """The store has no image of this name."""


class StoreDamaged(StoreError):
    """A file of the store is missing or does not match its checksum."""


class MaskStore:
    """A store opened for reading; see `open_store`. A snapshot of the index is taken when it is opened.

    Safe to send to another process (it opens its own handles there). Not safe to use in a child made by `fork` after
    it was read from; start DataLoader workers with `spawn` or `forkserver`.

    Memory: the index (about 120 bytes an image, and its name) and at most `readers.CACHE_BYTES` of decoded chunks.
    """

    def __init__(self, location: str | Path) -> None:
        self.path = Path(location)
        try:
            self.reader = open_reader(self.path)
        except ValueError as error:
            raise StoreError(f"{self.path}: not a mask store ({error})") from error
        self.header = read_header(self.path, self.reader)
        self._present: set[tuple[str, int]] = set()
        self._names = list(self.header.data_arrays())
        self.counts: NDArray[np.int32] = self._load("index/counts")  # (I, 3) masks, atoms, pairs
        self.states: NDArray[np.uint8] = self._load("index/state")  # (I,)
        self.shapes: NDArray[np.int32] = self._load("index/shape")  # (I, 2) height, width
        self.shard_digests: NDArray[np.uint8] = self._load("index/shard_digest")  # (blocks, arrays, 32)

    def __reduce__(self) -> tuple[Any, ...]:
        return MaskStore, (self.path,)

    def __len__(self) -> int:
        """Images the store knows, ready or not."""
        return self.header.n_images

    def __contains__(self, key: object) -> bool:
        return key in self._positions

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys)

    @cached_property
    def keys(self) -> list[str]:
        """Names of all images, in the order of the store."""
        return [unpack_text(raw) for raw in self._load("index/key")]

    @cached_property
    def _positions(self) -> dict[str, int]:
        return {key: position for position, key in enumerate(self.keys)}

    @property
    def ready_keys(self) -> list[str]:
        """Names of the images whose masks can be read."""
        return [self.keys[i] for i in np.flatnonzero(self.states == DONE)]

    def position(self, key: str) -> int:
        """Row of an image. Raises UnknownImage."""
        try:
            return self._positions[key]
        except KeyError:
            raise UnknownImage(f"{self.path}: no image {key!r} (first of {len(self)}: {self.keys[0]!r})") from None

    def shape(self, key: str) -> tuple[int, int]:
        """Height and width of an image."""
        height, width = self.shapes[self.position(key)]
        return int(height), int(width)

    def error(self, key: str) -> str:
        """Why an image was quarantined; empty when it was not."""
        position = self.position(key)
        return unpack_text(self._read("index/error", position))

    def digest(self, key: str) -> bytes:
        """SHA-256 of the blurred source; the attribute `digest` says of what."""
        return self._read("index/digest", self.position(key)).tobytes()

    def atoms(self, key: str, window: Window | None = None) -> AtomMap:
        """The masks of an image, or of a window (top, left, height, width) of it.

        Raises:
            ImageNotReady: not prepared yet, quarantined, or unknown. Missing is never "no masks".
            StoreDamaged: a shard is missing or does not match its checksum.
            ValueError: the window does not fit.
        """
        position = self._ready(key)
        n_masks, _, n_pairs = (int(n) for n in self.counts[position])
        plane = self._plane("atoms", position, window)
        pairs = self._rows("pairs", position, n_pairs)
        mask_ids = np.arange(n_masks, dtype=np.int32)
        return AtomMap(plane, pairs, mask_ids) if window is None else from_window(plane, pairs, mask_ids)

    def records(self, key: str) -> dict[str, NDArray[np.float64]]:
        """Column name -> (M,) float64, in the order of the masks; NaN where the segmenter gives no such value.

        Pixels: boxes are x, y, width, height; points are x, y. Raises as `atoms`.
        """
        position = self._ready(key)
        rows = self._rows("records", position, int(self.counts[position, 0]))
        return {name: rows[:, column].copy() for column, name in enumerate(RECORD_COLUMNS)}

    def image(self, name: str, key: str, window: Window | None = None) -> NDArray[np.uint8]:
        """The `blurred` or `sharp` picture, (h, w, 3) uint8 RGB. Raises as `atoms`, and StoreError without images."""
        self.require_images()
        if name not in IMAGE_NAMES:
            raise StoreError(f"{self.path}: no images {name!r}, choose from {', '.join(IMAGE_NAMES)}")
        return self._plane(f"images/{name}", self._ready(key), window)

    def require_images(self) -> None:
        """Raise StoreError when the store holds masks alone."""
        if not self.header.images:
            raise StoreError(f"{self.path}: holds masks without images; prepare it with --images")

    def _ready(self, key: str) -> int:
        position = self.position(key)
        state = self.states[position]
        if state == DONE:
            return position
        if state == PENDING:
            raise ImageNotReady(f"{self.path}: {key} is not prepared yet; finish the job with samdeblur-prep run")
        raise ImageNotReady(f"{self.path}: {key} is quarantined: {self.error(key)}")

    def _plane(self, name: str, position: int, window: Window | None) -> NDArray[Any]:
        height, width = (int(n) for n in self.shapes[position])
        if window is None:
            window = (0, 0, height, width)
        else:
            check_window(window, (height, width))
        top, left, h, w = window
        return self._read(name, (position, slice(top, top + h), slice(left, left + w)))

    def _rows(self, name: str, position: int, count: int) -> NDArray[Any]:
        return self._read(name, (position, slice(0, count)))

    def _read(self, name: str, where: Any) -> NDArray[Any]:
        if name in self._names:
            self._require_shard(name, where[0] // self.header.block_size)
        else:
            self._require_index(name)
        try:
            return self.reader.read(name, where)
        except (ValueError, OSError, KeyError) as error:
            raise StoreDamaged(f"{self.path}/{name}: cannot be read; check the store with verify ({error})") from error

    def _load(self, name: str) -> NDArray[Any]:
        """A whole index array."""
        return self._read(name, ...)

    def _require_index(self, name: str) -> None:
        """As `_require_shard`; every chunk of an index array was written when the store was made."""
        if (name, 0) in self._present:
            return
        spec = self.header.index_arrays()[name]
        for chunk in range(-(-spec.shape[0] // spec.chunks[0])):
            self._require(name, chunk, len(spec.shape), "this part of the index is missing; restore it")
        self._present.add((name, 0))

    def _require_shard(self, name: str, block: int) -> None:
        """A shard that is missing would read as zeros, without an error."""
        if (name, block) in self._present:
            return
        if self.shard_digests[block, self._names.index(name)].tobytes() != NO_SHARD:
            dimensions = len(self.header.data_arrays()[name].shape)
            self._require(name, block, dimensions, "this shard is missing; restore it or prepare the store again")
        self._present.add((name, block))

    def _require(self, name: str, part: int, dimensions: int, otherwise: str) -> None:
        try:
            there = self.reader.has(name, part)
        except (ValueError, OSError, KeyError) as error:
            raise StoreDamaged(f"{self.path}/{name}: cannot be opened ({error})") from error
        if not there:
            raise StoreDamaged(f"{self.path / name / part_path(part, dimensions)}: {otherwise}")


def open_store(location: str | Path) -> MaskStore:
    """Open a mask store for reading.

    Raises:
        FileNotFoundError: nothing there.
        StoreError: not a mask store of a format this version reads.
    """
    return MaskStore(location)

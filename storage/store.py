"""Reading a mask store: masks, records and images by key, whole or by window."""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from samdeblur.storage.access.files import Unreachable
from samdeblur.storage.access.header import Opened, open_checked
from samdeblur.storage.atoms import MAX_ATOMS, AtomMap, check_window, from_window
from samdeblur.storage.format.layout import (
    DONE,
    IMAGE_NAMES,
    MAX_PAIRS,
    MAX_RECORDS,
    NO_SHARD,
    PENDING,
    RECORD_COLUMNS,
    StoreError,
    seal,
    unpack_keys,
    unpack_text,
)
from samdeblur.storage.names import Names

TABLE_BYTES = 64 << 20  # tables of pairs kept by an open store

Window = tuple[int, int, int, int]


class ImageNotReady(KeyError):
    """The store knows the image but holds no masks of it: not prepared yet, or quarantined."""

    def __str__(self) -> str:
        return str(self.args[0])


class UnknownImage(ImageNotReady):
    """The store has no image of this name."""


class StoreDamaged(StoreError):
    """A file of the store is missing or does not match its checksum."""


class ExternalImageError(StoreError):
    """An image that lies elsewhere than its masks is missing, cannot be read, or is another one."""


class ExternalImages(Protocol):
    """Images that lie elsewhere than the masks; names join the two. Sent to other processes along with the store."""

    def __contains__(self, key: object, /) -> bool: ...

    def files(self, key: str) -> Sequence[Path]:
        """The files that an image is read from, blurred and sharp."""
        ...

    def image(self, store: MaskStore, name: str, key: str) -> NDArray[np.uint8]:
        """The `blurred` or `sharp` side of an image, whole; it is not written to.

        Returns:
            (H, W, 3) uint8 RGB, of the size that the store says.

        Raises:
            ExternalImageError: there is no such image.
        """
        ...


class MaskStore:
    """A store opened for reading; see `open_store`. A snapshot of the index is taken when it is opened.

    Safe to send to another process (it opens its own handles there). Not safe to use in a child made by `fork` after
    it was read from; start DataLoader workers with `spawn` or `forkserver`.

    Memory: the index (about 120 bytes an image, and its name twice; 32 more when digests are asked for), at most
    TABLE_BYTES of tables, and what its reader keeps: at most `readers.CACHE_BYTES` of decoded chunks, and the indices
    of `readers.CACHED_TAILS` shards.
    """

    def __init__(self, location: str | Path, opened: Opened | None = None) -> None:
        self.path, self.reader, self.header = opened or open_checked(location)
        self._arrays = self.header.arrays
        self._data_names, self._maps = list(self.header.data_arrays()), len(self.header.embeddings)
        self._present: set[tuple[str, int]] = set()
        self._tables: OrderedDict[int, NDArray[np.uint16]] = OrderedDict()
        self._table_bytes = 0
        self._external: ExternalImages | None = None
        index = self._read_index("counts", "state", "shape", "shard_digest")
        self.counts: NDArray[np.int32] = index["index/counts"]  # (I, 3) masks, atoms, pairs
        self.states: NDArray[np.uint8] = index["index/state"]  # (I,)
        self.shapes: NDArray[np.int32] = index["index/shape"]  # (I, 2) height, width
        of_embeddings = self._read_index("embedding_digest").values() if self.header.embeddings else ()
        self.shard_digests: NDArray[np.uint8] = np.concatenate(  # (blocks, arrays, 32)
            [index["index/shard_digest"], *of_embeddings], axis=1
        )
        if self.reader.has_shards:
            written: NDArray[np.bool_] = np.asarray(self.shard_digests.any(axis=2))
            self.reader.absent = dict(zip(self._data_names, ~written.T, strict=True))
        beyond = {
            "shape": (self.shapes > self.header.extent).any() or (self.shapes < 0).any(),
            "counts": (self.counts > (MAX_RECORDS, MAX_ATOMS, MAX_PAIRS)).any() or (self.counts < 0).any(),
        }
        for name, found in beyond.items():
            if found:
                raise StoreDamaged(f"{self.path / f'index/{name}'}: numbers beyond the limits of the format")

    def __reduce__(self) -> tuple[Any, ...]:
        place = (
            self.path.text if self.path.remote else str(self.path.path)
        )  # the other process may be in another folder
        return MaskStore, (place,), {"_external": self._external}

    def with_external_images(self, images: ExternalImages) -> MaskStore:
        """This store with images that lie elsewhere, in place of any of its own: `image` and `ready_keys` go by them.

        Nothing is read anew, and this one stays as it is.
        """
        other = MaskStore.__new__(MaskStore)
        vars(other).update(vars(self), _external=images, _tables=OrderedDict(), _table_bytes=0)
        return other

    def __len__(self) -> int:
        """Images the store knows, ready or not."""
        return self.header.n_images

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and self.find(key) is not None

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys)

    @cached_property
    def keys(self) -> list[str]:
        """Names of all images, in the order of the store."""
        raw = self._read("index/key")
        if seal(self.header.attributes(), raw, self.shapes) != self.header.seal:
            raise StoreDamaged(f"{self.path}: the names and sizes of the images do not belong to this store")
        return unpack_keys(raw)

    @cached_property
    def _digests(self) -> NDArray[np.uint8]:
        return self._read("index/digest")  # (I, 32)

    @cached_property
    def _positions(self) -> dict[str, int]:
        return {key: position for position, key in enumerate(self.keys)}

    @cached_property
    def _names(self) -> Names:
        return Names(self._positions)

    def find(self, key: str) -> str | None:
        """The name of an image in the store: `key`, or that in another form of Unicode, with or without suffix."""
        return key if key in self._positions else self._names.find(key)

    @property
    def ready_keys(self) -> list[str]:
        """Names of the images whose masks can be read, and whose images are there when they lie elsewhere."""
        done = [self.keys[i] for i in np.flatnonzero(self.states == DONE).tolist()]
        return done if self._external is None else [key for key in done if key in self._external]

    def position(self, key: str) -> int:
        """Row of an image. Raises UnknownImage."""
        name = self.find(key)
        if name is None:
            raise UnknownImage(f"{self.path}: no image {key!r} (first of {len(self)}: {self.keys[0]!r})")
        return self._positions[name]

    def shape(self, key: str) -> tuple[int, int]:
        """Height and width of an image."""
        height, width = self.shapes[self.position(key)]
        return int(height), int(width)

    def error(self, key: str) -> str:
        """Why an image was quarantined; empty when it was not."""
        return unpack_text(self._read("index/error", self.position(key)))

    def why_not_ready(self, key: str) -> str:
        """Why an image is not among `ready_keys`."""
        state = self.states[self.position(key)]
        if state == PENDING:
            return "not prepared yet"
        return "its file is not there" if state == DONE else f"quarantined: {self.error(key)}"

    def digest(self, key: str) -> bytes:
        """SHA-256 of the blurred source; the attribute `digest` says of what."""
        return self._digests[self.position(key)].tobytes()

    def atoms(self, key: str, window: Window | None = None) -> AtomMap:
        """The masks of an image, or of a window (top, left, height, width) of it.

        Raises:
            ImageNotReady: not prepared yet, quarantined, or unknown. Missing is never "no masks".
            StoreDamaged: a shard is missing or does not match its checksum.
            ValueError: the window does not fit.
        """
        position = self._ready(key)
        with self._blaming("atoms"):
            self._require_shards(("pairs", "atoms"), position // self.header.block_size)
        pairs = self._table(position)
        plane = self._plane("atoms", position, window)
        mask_ids = np.arange(self.counts[position, 0], dtype=np.int32)
        if plane.size and int(plane.max()) > self.counts[position, 1]:
            raise StoreDamaged(f"{self.path}: {key}: its label plane does not belong to its table")
        return AtomMap(plane, pairs, mask_ids) if window is None else from_window(plane, pairs, mask_ids)

    def records(self, key: str) -> dict[str, NDArray[np.float64]]:
        """Column name -> (M,) float64, in the order of the masks; NaN where the segmenter gives no such value.

        Pixels: boxes are x, y, width, height; points are x, y. Raises as `atoms`.
        """
        position = self._ready(key)
        rows = self._read("records", (position, slice(0, int(self.counts[position, 0]))))
        return {name: rows[:, column].copy() for column, name in enumerate(RECORD_COLUMNS)}

    def image(self, name: str, key: str, window: Window | None = None) -> NDArray[np.uint8]:
        """The `blurred` or `sharp` image, (h, w, 3) uint8 RGB.

        Raises as `atoms`, StoreError without images, and ExternalImageError for one elsewhere that cannot be used.
        """
        self.require_images()
        if name not in IMAGE_NAMES:
            raise StoreError(f"{self.path}: no images {name!r}, choose from {', '.join(IMAGE_NAMES)}")
        position = self._ready(key)
        if self._external is None:
            return self._plane(f"images/{name}", position, window)
        top, left, height, width = self._window(position, window)
        return self._external.image(self, name, key)[top : top + height, left : left + width].copy()

    def embeddings(self, key: str, crops: int | None = None) -> list[NDArray[np.float16]]:
        """What the encoder made of an image and its first crops, all of them by default: each map (crops, ...) float16.

        Raises as `atoms`, and StoreError where they are not kept.
        """
        if not self.header.embeddings:
            raise StoreError(f"{self.path}: keeps no embeddings; --keep-embeddings makes a store that does")
        position, count = self._ready(key), slice(0, crops or self.header.embeddings[0][0])
        return [self._read(f"embeddings/{number}", (position, count)) for number in range(len(self.header.embeddings))]

    def content(self, key: str) -> str:
        """Of what an image's masks, records and own images are, SHA-256 (hex): the same as long as no byte changes.

        Raises UnknownImage.
        """
        position = self.position(key)
        arrays = len(self._data_names) - self._maps
        known = self.shard_digests[position // self.header.block_size, :arrays].tobytes()
        if not self.reader.has_shards:  # an HDF5 file has none, and no digests of them
            size = str(self.path.path.stat().st_size).encode()
            known = b" ".join([size, self.digest(key), self.counts[position].tobytes()])
        return hashlib.sha256(f"{self.header.seal} {position}".encode() + known).hexdigest()

    def images_known_by(self, keys: Sequence[str]) -> dict[str, str]:
        """What the blurred and sharp sides of images are known by: kind of knowledge -> what it says.

        `shards` is a digest, the same in a folder and a zip, `files` one of the sizes of external files, `size` that of
        the whole. Two that share no kind say nothing of each other.
        """
        if self._external is not None:
            files = [[_size_of(path) for path in self._external.files(key)] for key in keys]
            return {"files": hashlib.sha256(repr(files).encode()).hexdigest()}
        if not self.reader.has_shards:
            return {"size": str(self.path.path.stat().st_size)}
        blocks = sorted({self.position(key) // self.header.block_size for key in keys})
        shards = [at for at, name in enumerate(self._data_names) if name.startswith("images/")]
        return {"shards": hashlib.sha256(self.shard_digests[blocks][:, shards].tobytes()).hexdigest()}

    def sources_digest(self, keys: Sequence[str]) -> str:
        """SHA-256 (hex) of the digests of images and of how many masks they have: the same in every form of a store."""
        rows = [self.position(key) for key in keys]
        digest = hashlib.sha256(self._digests[rows].tobytes())
        digest.update(self.counts[rows].astype("<i4").tobytes())
        return digest.hexdigest()

    def external_files(self, key: str) -> Sequence[Path]:
        """The files that an image is read from, blurred and sharp, where they lie elsewhere than the masks."""
        return () if self._external is None else self._external.files(key)

    def require_images(self) -> None:
        """Raise StoreError when the store holds masks alone."""
        if not self.header.images and self._external is None:
            raise StoreError(
                f"{self.path}: holds masks without images; add them with samdeblur-prep add-images FOLDER, the "
                "dataset's, or give --images FOLDER to training and evaluation"
            )

    def _ready(self, key: str) -> int:
        position = self.position(key)
        state = self.states[position]
        if state == DONE:
            return position
        if state == PENDING:
            raise ImageNotReady(f"{self.path}: {key} is not prepared yet; finish the job with samdeblur-prep run")
        raise ImageNotReady(f"{self.path}: {key} is quarantined: {self.error(key)}")

    def _table(self, position: int) -> NDArray[np.uint16]:
        """The (P, 2) pairs of an image, kept for the next window of it."""
        if position in self._tables:
            self._tables.move_to_end(position)
            return self._tables[position]
        n_masks, n_atoms, n_pairs = (int(count) for count in self.counts[position])
        pairs = self._read("pairs", (position, slice(0, n_pairs)))
        last = pairs.max(axis=0, initial=0) if n_pairs else (0, -1)
        if last[0] != n_atoms or last[1] >= n_masks or (n_pairs and pairs[:, 0].min() == 0):
            raise StoreDamaged(f"{self.path}: {self.keys[position]}: its table does not belong to its counts")
        if not n_masks and self.header.digest != "none" and not self._read("index/digest", position).any():
            raise StoreDamaged(f"{self.path}: {self.keys[position]}: marked as done, but has no digest")
        self._tables[position] = pairs
        self._table_bytes += pairs.nbytes
        while self._table_bytes > TABLE_BYTES:
            self._table_bytes -= self._tables.popitem(last=False)[1].nbytes
        return pairs

    def _plane(self, name: str, position: int, window: Window | None) -> NDArray[Any]:
        top, left, height, width = self._window(position, window)
        return self._read(name, (position, slice(top, top + height), slice(left, left + width)))

    def _window(self, position: int, window: Window | None) -> Window:
        """The window, or that of the whole image. Raises ValueError when it does not fit."""
        height, width = (int(n) for n in self.shapes[position])
        if window is None:
            return 0, 0, height, width
        check_window(window, (height, width))
        return window

    def _read(self, name: str, where: Any = ...) -> NDArray[Any]:
        with self._blaming(name):
            if name in self._data_names:
                self._require_shards([name], where[0] // self.header.block_size)
            return self.reader.read(name, self._arrays[name], where)

    def _read_index(self, *names: str) -> dict[str, NDArray[Any]]:
        with self._blaming("index"):
            return self.reader.read_whole({f"index/{name}": self._arrays[f"index/{name}"] for name in names})

    @contextmanager
    def _blaming(self, name: str) -> Iterator[None]:
        """Raise StoreDamaged for what cannot be read of an array."""
        try:
            yield
        except (StoreDamaged, Unreachable):
            raise
        except (ValueError, OSError) as error:
            raise StoreDamaged(f"{self.path / name}: cannot be read; check the store with verify ({error})") from error

    def _require_shards(self, names: Sequence[str], block: int) -> None:
        """Compare the digests in shards with the index, once: one missing would read as zeros, another's as its own."""
        names = [name for name in names if (name, block) not in self._present]
        expected = {name: self.shard_digests[block, self._data_names.index(name)].tobytes() for name in names}
        wanted = [name for name in names if self.reader.has_shards and expected[name] != NO_SHARD]
        found = self.reader.digests([(name, block) for name in wanted], self._arrays) if wanted else []
        for name, digest in zip(wanted, found, strict=True):
            if digest != expected[name]:
                problem = "this shard is missing" if digest is None else "this shard is damaged or another's"
                file = self.path / name / self._arrays[name].part_path(block)
                raise StoreDamaged(f"{file}: {problem}; restore it, or prepare a new store")
        self._present |= {(name, block) for name in names}


def open_store(location: str | Path) -> MaskStore:
    """Open a mask store for reading.

    Args:
        location: a folder, or a zip or HDF5 file exported from one; the folder or the zip may also be an http://,
            https:// or s3:// address. S3 takes credentials and AWS_ENDPOINT_URL from the environment, as AWS does, and
            is read anonymously when there are none.

    Raises:
        FileNotFoundError: nothing there.
        StoreError: not a mask store of a format this version reads.
        Unreachable: a server that does not answer, or sends no parts of files.
    """
    return MaskStore(location)


def _size_of(path: Path) -> int:
    """Bytes of a file; -1 for none that is there."""
    with suppress(OSError):
        return os.stat(path).st_size
    return -1

"""How the arrays of a store are read: from a folder, or from the zip or HDF5 file that was exported from one.

A reader knows arrays by their names ("atoms", "index/key") and specifications, and nothing of what they mean.
"""

from __future__ import annotations

import itertools
import json
import zipfile
from collections.abc import Iterator, Sequence
from functools import cached_property, lru_cache
from typing import Any, Protocol

import h5py
import numpy as np
import tensorstore as ts
from numpy.typing import NDArray

from samdeblur.storage.access.location import TIMEOUT, Files, Location, answering
from samdeblur.storage.access.zips import Zip
from samdeblur.storage.format.chunks import decode_chunk, decode_index, put, read_shard, shard_digest, tail_bytes
from samdeblur.storage.format.layout import DIGEST_BYTES, ArraySpec

CACHE_BYTES = 64 << 20  # decoded chunks kept by a reader of a folder
CACHED_INDICES = 256  # shard indices, and CACHED_ROWS chunks of the index, kept by a reader of a zip
CACHED_ROWS = 16

MARGIN = 1024  # bytes by which a compressed chunk may be larger than the chunk

Where = Any  # ..., or a position, or a position and slices with start and stop


class Reader(Protocol):
    """Read access to one store. What is damaged raises ValueError, a silent server Unreachable."""

    has_shards: bool  # files of their own, each with its digest in it

    def documents(self, names: Sequence[str]) -> dict[str, Any]:
        """The Zarr metadata, by name, of arrays and groups ("" for the root); without those that are not there."""
        ...

    def trailer(self, name: str, part: int, spec: ArraySpec) -> bytes | None:
        """The digest in a shard; None when the shard is not there."""
        ...

    def digest(self, name: str, part: int, spec: ArraySpec) -> bytes:
        """SHA-256 of a shard that is there, without the digest in it."""
        ...

    def read(self, name: str, spec: ArraySpec, where: Where) -> NDArray[Any]:
        """Values of an array. A missing chunk of an array without shards raises, one of a shard is zeros."""
        ...

    def stray(self) -> Iterator[str]:
        """Names of the files that are damaged apart from all arrays."""
        ...


def open_reader(location: Location) -> Reader:
    """The reader for what lies at a location.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: neither a folder, nor a zip or HDF5 file.
        Unreachable: no answer in time, or no parts of files.
    """
    hdf5 = location.name.endswith((".h5", ".hdf5"))
    if location.remote:
        if hdf5:
            raise ValueError("HDF5 files are read from a disk only; download it, or share a zip")
        if location.name.endswith(".zip"):
            return ZipReader(location)
        reader = FolderReader(location)
        if not reader.documents([""]):
            raise FileNotFoundError(f"{location}: no such store")
        return reader
    if location.path.is_dir():
        return FolderReader(location)
    if not location.path.exists():
        raise FileNotFoundError(f"{location}: no such store")
    if zipfile.is_zipfile(location.path):
        return ZipReader(location)
    if h5py.is_hdf5(location.path):
        return Hdf5Reader(location)
    raise ValueError("neither a folder nor a zip or HDF5 file, or a damaged one")


class FolderReader:
    """A folder, read by TensorStore: several times faster than zarr-python on the same files."""

    has_shards = True

    def __init__(self, location: Location) -> None:
        self._location = location
        self._files = Files(location)
        self._arrays: dict[str, ts.TensorStore] = {}

    def documents(self, names: Sequence[str]) -> dict[str, Any]:
        contents = self._files.get_all([(f"{name}/zarr.json".lstrip("/"), None) for name in names])
        return _parse(dict(zip(names, contents, strict=True)))

    def trailer(self, name: str, part: int, spec: ArraySpec) -> bytes | None:
        tail = self._files.get(f"{name}/{spec.part_path(part)}", slice(-tail_bytes(spec), None))
        return None if tail is None else tail[:DIGEST_BYTES]

    def digest(self, name: str, part: int, spec: ArraySpec) -> bytes:
        return shard_digest(self._files.get(f"{name}/{spec.part_path(part)}") or b"", spec)

    def read(self, name: str, spec: ArraySpec, where: Where) -> NDArray[Any]:
        with answering(self._location, name):
            return self._array(name, spec)[where].read().result(timeout=TIMEOUT)

    def stray(self) -> Iterator[str]:
        yield from ()

    def _array(self, name: str, spec: ArraySpec) -> ts.TensorStore:
        if name not in self._arrays:
            description = {
                "driver": "zarr3",
                "kvstore": (self._location / name).spec(),
                "metadata": spec.document(),  # was compared with the array's own when the store was opened
                "fill_missing_data_reads": spec.shards is not None,
            }
            self._arrays[name] = ts.open(
                description,
                open=True,
                read=True,
                assume_metadata=True,
                context=self._context,
                recheck_cached_data="open",
            ).result(timeout=TIMEOUT)
        return self._arrays[name]

    @cached_property
    def _context(self) -> ts.Context:
        return ts.Context({"cache_pool": {"total_bytes_limit": CACHE_BYTES}})


class ZipReader:
    """A zip whose entries are stored: of each only the bytes of the chunks that are needed.

    TensorStore's own zip driver hangs on larger entries, or reads them whole.
    """

    has_shards = True

    def __init__(self, location: Location) -> None:
        self._zip = Zip(location)
        self._tail = lru_cache(CACHED_INDICES)(self._read_tail)
        self._index = lru_cache(CACHED_INDICES)(self._read_index)
        self._rows = lru_cache(CACHED_ROWS)(self._read_rows)
        self._specs: dict[str, ArraySpec] = {}

    def documents(self, names: Sequence[str]) -> dict[str, Any]:
        files = {name: f"{name}/zarr.json".lstrip("/") for name in names}
        there = [name for name in names if files[name] in self._zip]
        contents = self._zip.contents([files[name] for name in there])
        return _parse(dict(zip(there, contents, strict=True)))

    def trailer(self, name: str, part: int, spec: ArraySpec) -> bytes | None:
        entry = f"{name}/{spec.part_path(part)}"
        if entry not in self._zip:
            return None
        self._specs[name] = spec
        return self._tail(name, part)[:DIGEST_BYTES]

    def digest(self, name: str, part: int, spec: ArraySpec) -> bytes:
        (content,) = self._zip.contents([f"{name}/{spec.part_path(part)}"])
        return shard_digest(content, spec)

    def read(self, name: str, spec: ArraySpec, where: Where) -> NDArray[Any]:
        self._specs[name] = spec
        start, stop = _box(where, spec.shape)
        box = np.zeros([last - first for first, last in zip(start, stop, strict=True)], spec.dtype)
        for part in range(start[0] // spec.part_rows, -(-stop[0] // spec.part_rows)):
            first = part * spec.part_rows
            if spec.shards is None:
                put(box, start, self._rows(name, part), [first, *[0] * (len(start) - 1)])
                continue
            low, high = max(start[0], first), min(stop[0], first + spec.part_rows)
            content = self._read_shard(name, part, [low - first, *start[1:]], [high - first, *stop[1:]])
            box[low - start[0] : high - start[0]] = content
        return box[0] if _is_position(where) else box

    def stray(self) -> Iterator[str]:
        for name in self._zip:
            try:
                self._zip.contents([name])
            except ValueError:
                yield name

    def _read_rows(self, name: str, part: int) -> NDArray[Any]:
        spec = self._specs[name]
        entry = f"{name}/{spec.part_path(part)}"
        if entry not in self._zip:
            raise ValueError(f"{entry} is missing")
        return decode_chunk(self._zip.contents([entry])[0], spec)

    def _read_shard(self, name: str, part: int, start: list[int], stop: list[int]) -> NDArray[Any]:
        spec = self._specs[name]
        entry = f"{name}/{spec.part_path(part)}"
        if entry not in self._zip:
            return np.zeros([last - first for first, last in zip(start, stop, strict=True)], spec.dtype)

        def fetch(spans: Sequence[tuple[int, int]]) -> list[bytes]:
            return self._zip.read([(entry, first, last) for first, last in spans])

        return read_shard(spec, self._index(name, part), fetch, start, stop)

    def _read_index(self, name: str, part: int) -> NDArray[np.uint64]:
        return decode_index(self._tail(name, part)[DIGEST_BYTES:], self._specs[name])

    def _read_tail(self, name: str, part: int) -> bytes:
        """The digest and the index that a shard ends in; nothing of a shard that is shorter."""
        spec = self._specs[name]
        entry = f"{name}/{spec.part_path(part)}"
        size = self._zip.size(entry)
        first = size - tail_bytes(spec)
        return self._zip.read([(entry, first, size)])[0] if first >= 0 else b""


class Hdf5Reader:
    """An HDF5 file. Opened once per process: HDF5 has one lock for all its reading.

    Links that lead out of the file, or in circles, are refused.
    """

    has_shards = False

    def __init__(self, location: Location) -> None:
        try:
            self._file = h5py.File(location.path, "r")
        except OSError as error:
            raise ValueError(f"a damaged HDF5 file: {error}") from error

    def documents(self, names: Sequence[str]) -> dict[str, Any]:
        """What `ArraySpec.document` gives, of arrays whose types and chunks are those of the format."""
        found: dict[str, Any] = {}
        for name in names:
            try:
                if not name:
                    found[name] = {"attributes": json.loads(self._file.attrs["attributes"])}
                elif (node := self._node(name)) is not None:
                    found[name] = self._document(name, node)
            except (OSError, RuntimeError, TypeError, KeyError, AttributeError) as error:
                raise ValueError(f"{name or 'attributes'}: {error}") from error
        return found

    def _document(self, name: str, node: h5py.Group | h5py.Dataset) -> dict[str, Any]:
        if isinstance(node, h5py.Group):
            return {"node_type": "group"}
        if node.is_virtual or node.external or node.chunks is None:
            raise ValueError(f"{name} is not an array in chunks of this file")
        first = node.chunks[0] if name.startswith("index/") else int(self._file.attrs["block_size"])
        return {
            "shape": list(node.shape),
            "data_type": node.dtype.name,
            "chunk_grid": {"configuration": {"chunk_shape": [first, *node.shape[1:]]}},
            "chunks": list(node.chunks),
        }

    def _node(self, name: str) -> h5py.Group | h5py.Dataset | None:
        node: Any = self._file
        for part in name.split("/"):
            link = node.get(part, getlink=True) if isinstance(node, h5py.Group) else None
            if link is None:
                return None
            if not isinstance(link, h5py.HardLink):
                raise ValueError(f"{name} is a link to another place")
            node = node[part]
        return node

    def trailer(self, name: str, part: int, spec: ArraySpec) -> bytes | None:
        return None

    def digest(self, name: str, part: int, spec: ArraySpec) -> bytes:
        raise ValueError("an HDF5 file has no shards")

    def read(self, name: str, spec: ArraySpec, where: Where) -> NDArray[Any]:
        try:
            array = self._file[name]
            start, stop = _box(where, spec.shape)
            axes = [range(a - a % size, b, size) for a, b, size in zip(start, stop, array.chunks, strict=True)]
            largest = np.prod(array.chunks) * array.dtype.itemsize + MARGIN
            for place in itertools.product(*axes):  # what is stored bounds what a filter can make of it
                if array.id.get_chunk_info_by_coord(place).size > largest:
                    raise ValueError(f"a chunk of {name} is larger than a chunk of this array can be")
            return np.asarray(array[where])
        except (OSError, KeyError, RuntimeError) as error:
            raise ValueError(str(error)) from error

    def stray(self) -> Iterator[str]:
        yield from ()


def _parse(contents: dict[str, bytes | None]) -> dict[str, Any]:
    documents = {}
    for name, content in contents.items():
        if content is None:
            continue
        try:
            documents[name] = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{name}/zarr.json cannot be read ({type(error).__name__})".lstrip("/")) from error
    return documents


def _is_position(where: Where) -> bool:
    return where is not ... and isinstance(where if not isinstance(where, tuple) else where[0], int | np.integer)


def _box(where: Where, shape: tuple[int, ...]) -> tuple[list[int], list[int]]:
    """First and last index (exclusive) along every axis."""
    axes = [] if where is ... else list(where) if isinstance(where, tuple) else [where]
    axes += [slice(None)] * (len(shape) - len(axes))
    start, stop = [], []
    for axis, size in zip(axes, shape, strict=True):
        first, last, _ = (slice(int(axis), int(axis) + 1) if not isinstance(axis, slice) else axis).indices(size)
        start.append(first)
        stop.append(max(first, last))
    return start, stop

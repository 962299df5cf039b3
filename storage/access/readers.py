"""How the arrays of a store are read: from a folder, or from the zip or HDF5 file that was exported from one.

A reader knows arrays by their names ("atoms", "index/key") and specifications, and nothing of what they mean.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from samdeblur.storage.access.boxes import Where, box_of, is_position
from samdeblur.storage.access.files import Disk, Files, Refused, fetch_spans, open_files
from samdeblur.storage.access.location import Location
from samdeblur.storage.access.zips import ROOT, Zip, is_zip
from samdeblur.storage.format.chunks import (
    Cell,
    cells_within,
    decode_chunk,
    decode_index,
    put,
    shard_digest,
    span_of,
    tail_bytes,
)
from samdeblur.storage.format.layout import DIGEST_BYTES, ArraySpec

CACHE_BYTES = 64 << 20  # decoded chunks kept
CACHED_TAILS = 1024  # digests and indices of shards kept
CACHED_ROWS = 16  # chunks of the index kept
HELD_BYTES = 256 << 20  # whole shards kept by `check`
HDF5 = b"\x89HDF\r\n\x1a\n"

Shard = tuple[str, int]  # name of an array, number of the shard


class Reader(Protocol):
    """Read access to one store. What is damaged raises ValueError, a silent server Unreachable."""

    has_shards: bool  # files of their own, each with its digest in it
    lists: bool  # whether it knows without asking a server what is not there
    absent: Mapping[str, NDArray[np.bool_]]  # by array, the shards that are not written: not asked for, zeros

    def documents(self, names: Sequence[str]) -> dict[str, Any]:
        """The Zarr metadata, by name, of arrays and groups ("" for the root); without those that are not there."""
        ...

    def digests(self, shards: Sequence[Shard], arrays: Mapping[str, ArraySpec]) -> list[bytes | None]:
        """What each shard says its digest is; None when the shard is not there."""
        ...

    def check(self, shard: Shard, spec: ArraySpec) -> tuple[bytes, bytes] | None:
        """What a shard says its digest is, and what it is; None when it is not there. The reads that follow have it."""
        ...

    def read(self, name: str, spec: ArraySpec, where: Where) -> NDArray[Any]:
        """Values of an array. A missing chunk of an array without shards raises, one of a shard is zeros."""
        ...

    def read_whole(self, specs: Mapping[str, ArraySpec]) -> dict[str, NDArray[Any]]:
        """Arrays without shards, all at once."""
        ...

    def stray(self) -> Iterator[str]:
        """Names of the files that are damaged apart from all arrays."""
        ...


def open_reader(location: Location) -> Reader:
    """The reader for what lies at a location; a zip is known by its bytes, whatever it is called.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: neither a folder, nor a zip or HDF5 file.
        Unreachable: no answer in time, or no parts of files.
    """
    if location.remote:
        return _remote_reader(location)
    if location.path.is_dir():
        from samdeblur.storage.access.folders import FolderReader

        return FolderReader(location)
    if not location.path.exists():
        raise FileNotFoundError(f"{location}: no such store")
    files = open_files(location)
    if is_zip(files):
        return ChunkReader(Zip(files))
    import h5py  # a tenth of a second, which only files that may be HDF5 are worth

    if h5py.is_hdf5(location.path):
        from samdeblur.storage.access.hdf5 import Hdf5Reader

        return Hdf5Reader(location)
    raise ValueError("neither a folder nor a zip or HDF5 file, or a damaged one")


def _remote_reader(location: Location) -> Reader:
    """A folder has zarr.json in it; anything else is a file, and those that are named like files are tried first."""
    name = location.name.lower()
    if name.endswith((".h5", ".hdf5")):
        raise ValueError("HDF5 files are read from a disk only; download it, or share a zip")
    files = open_files(location)
    refusal: Refused | None = None
    for kind in ("file", "folder") if name.endswith(".zip") or location.query else ("folder", "file"):
        try:
            if kind == "folder" and (root := files.get_all([(ROOT, None)])[0]) is not None:
                return ChunkReader(files, root)
            if kind == "file" and is_zip(files):
                return ChunkReader(Zip(files))
        except Refused as error:
            refusal = refusal or error
    if refusal:
        raise refusal
    start = files.get_all([("", slice(0, len(HDF5)))])[0]
    if start is None:
        raise FileNotFoundError(f"{location}: no such store")
    if start == HDF5:
        raise ValueError("HDF5 files are read from a disk only; download it, or share a zip")
    raise ValueError("neither a folder with zarr.json in it nor a zip, or a damaged one")


class ChunkReader:
    """Files of Zarr chunks: those of a folder, or the stored entries of a zip. Only chunks that are needed are read."""

    has_shards = True

    def __init__(self, files: Files, root: bytes | None = None) -> None:
        self._files = files
        self._root = root  # where it was read already
        self.lists = isinstance(files, Disk | Zip)
        self.absent: Mapping[str, NDArray[np.bool_]] = {}
        self._specs: dict[str, ArraySpec] = {}
        self._tails: OrderedDict[Shard, bytes] = OrderedDict()
        self._index = lru_cache(CACHED_TAILS)(self._read_index)
        self._rows = lru_cache(CACHED_ROWS)(lambda shard: self._read_rows([shard])[0])
        self._chunks: OrderedDict[tuple[Shard, Cell], NDArray[Any]] = OrderedDict()
        self._chunk_bytes = 0
        self._held: dict[Shard, bytes] = {}

    def documents(self, names: Sequence[str]) -> dict[str, Any]:
        if list(names) == [""] and self._root is not None:
            contents: list[bytes | None] = [self._root]
        else:
            contents = self._files.get_all([(f"{name}/{ROOT}".lstrip("/"), None) for name in names])
        documents = {}
        for name, content in zip(names, contents, strict=True):
            if content is None:
                continue
            try:
                documents[name] = json.loads(content)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{name}/{ROOT} cannot be read ({type(error).__name__})".lstrip("/")) from error
        return documents

    def digests(self, shards: Sequence[Shard], arrays: Mapping[str, ArraySpec]) -> list[bytes | None]:
        self._specs |= {name: arrays[name] for name, _ in shards}
        tails = self._read_tails(shards)
        return [None if tail is None else tail[:DIGEST_BYTES] for tail in tails]

    def check(self, shard: Shard, spec: ArraySpec) -> tuple[bytes, bytes] | None:
        self._specs[shard[0]] = spec
        (content,) = self._files.get_all([(self._path(shard), None)])
        if content is None:
            return None
        self._held = {held: kept for held, kept in self._held.items() if held[1] == shard[1]}
        if sum(map(len, self._held.values())) + len(content) <= HELD_BYTES:
            self._held[shard] = content
        self._tails[shard] = content[-tail_bytes(spec) :]
        return self._tails[shard][:DIGEST_BYTES], shard_digest(content, spec)

    def read(self, name: str, spec: ArraySpec, where: Where) -> NDArray[Any]:
        self._specs[name] = spec
        start, stop = box_of(where, spec.shape)
        box = np.zeros([last - first for first, last in zip(start, stop, strict=True)], spec.dtype)
        parts = range(start[0] // spec.part_rows, -(-stop[0] // spec.part_rows))
        if spec.shards is None:
            for part in parts:
                put(box, start, self._rows((name, part)), [part * spec.part_rows, *[0] * (len(start) - 1)])
        else:
            for part in parts:
                self._read_shard((name, part), box, start, stop)
        return box[0] if is_position(where) else box

    def read_whole(self, specs: Mapping[str, ArraySpec]) -> dict[str, NDArray[Any]]:
        self._specs |= specs
        shards = [(name, part) for name, spec in specs.items() for part in range(spec.n_parts)]
        found = {name: np.zeros(spec.shape, spec.dtype) for name, spec in specs.items()}
        for (name, part), chunk in zip(shards, self._read_rows(shards), strict=True):
            put(found[name], [0] * chunk.ndim, chunk, [part * specs[name].part_rows, *[0] * (chunk.ndim - 1)])
        return found

    def stray(self) -> Iterator[str]:
        if isinstance(self._files, Zip):
            yield from self._files.stray()

    def _path(self, shard: Shard) -> str:
        name, part = shard
        return f"{name}/{self._specs[name].part_path(part)}"

    def _read_rows(self, shards: Sequence[Shard]) -> list[NDArray[Any]]:
        """Chunks of the arrays without shards."""
        found = []
        for shard, content in zip(
            shards, self._files.get_all([(self._path(shard), None) for shard in shards]), strict=True
        ):
            if content is None:
                raise ValueError(f"{self._path(shard)} is missing")
            try:
                found.append(decode_chunk(content, self._specs[shard[0]]))
            except ValueError as error:
                raise ValueError(f"{self._path(shard)}: {error}") from error
        return found

    def _read_shard(self, shard: Shard, box: NDArray[Any], start: Sequence[int], stop: Sequence[int]) -> None:
        """Put into a box, from `start` to `stop` of the array, what a shard has of it."""
        spec = self._specs[shard[0]]
        absent = self.absent.get(shard[0])
        index = None if absent is not None and absent[shard[1]] else self._index(shard)
        if index is None:
            return
        row = shard[1] * spec.part_rows
        low = [max(start[0], row) - row, *start[1:]]
        high = [min(stop[0], row + spec.part_rows) - row, *stop[1:]]
        spans = {cell: span for cell in cells_within(spec, low, high) if (span := span_of(index, cell, spec))}
        for cell, chunk in self._decoded(shard, spans).items():
            first, *rest = (place * size for place, size in zip(cell, spec.chunks, strict=True))
            put(box, start, chunk, [first + row, *rest])

    def _decoded(self, shard: Shard, spans: Mapping[Cell, tuple[int, int]]) -> dict[Cell, NDArray[Any]]:
        """Chunks of a shard, and kept for the next window of the image."""
        path, spec, held = self._path(shard), self._specs[shard[0]], self._held.get(shard)
        missing = [cell for cell in spans if (shard, cell) not in self._chunks]
        if held is None:
            contents = fetch_spans(self._files, [(path, *spans[cell]) for cell in missing])
        else:
            contents = [held[slice(*spans[cell])] for cell in missing]
        new = {cell: decode_chunk(content, spec) for cell, content in zip(missing, contents, strict=True)}
        found = {cell: new[cell] if cell in new else self._chunks[shard, cell] for cell in spans}
        for cell, chunk in new.items():
            self._chunks[shard, cell] = chunk
            self._chunk_bytes += chunk.nbytes
        while self._chunk_bytes > CACHE_BYTES:
            self._chunk_bytes -= self._chunks.popitem(last=False)[1].nbytes
        return found

    def _read_index(self, shard: Shard) -> NDArray[np.uint64] | None:
        (tail,) = self._read_tails([shard])
        return None if tail is None else decode_index(tail[DIGEST_BYTES:], self._specs[shard[0]])

    def _read_tails(self, shards: Sequence[Shard]) -> list[bytes | None]:
        """Digest and index, which shards end in. Less, or nothing, of a shorter one; None of one that is missing."""
        missing = [shard for shard in shards if shard not in self._tails]
        sizes = [tail_bytes(self._specs[name]) for name, _ in missing]
        wanted = [(self._path(shard), slice(-size, None)) for shard, size in zip(missing, sizes, strict=True)]
        new = dict(zip(missing, self._files.get_all(wanted), strict=True)) if wanted else {}
        found = [new[shard] if shard in new else self._tails[shard] for shard in shards]
        self._tails |= {shard: tail for shard, tail in new.items() if tail is not None}
        while len(self._tails) > CACHED_TAILS:
            self._tails.popitem(last=False)
        return found

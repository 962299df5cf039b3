"""Where the bytes of a store lie: in a folder, or in the zip or HDF5 file that was exported from one.

A reader knows arrays by their names ("atoms", "index/key") and nothing of what they mean.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import struct
import weakref
import zipfile
import zlib
from collections.abc import AsyncIterator, Iterable
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import h5py
import numpy as np
import tensorstore as ts
import zarr
from numpy.typing import NDArray
from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.core.buffer import Buffer, BufferPrototype

from samdeblur.storage.files import sha256_file

CACHE_BYTES = 64 << 20  # decoded chunks kept by a reader of a folder


class Reader(Protocol):
    """Read access to one store."""

    def metadata(self, name: str) -> Any:
        """The Zarr metadata of an array, or of the root for "". Raises OSError, KeyError, ValueError."""
        ...

    def has(self, name: str, part: int) -> bool:
        """Whether the file of a part of an array is there: of a shard, or of a chunk of an array without shards."""
        ...

    def digest(self, name: str, part: int) -> bytes | None:
        """SHA-256 of the file of a part that is there; None in a file format without such files."""
        ...

    def read(self, name: str, where: Any) -> NDArray[Any]:
        """Values of an array at a NumPy index of integers and slices. Raises ValueError for damage."""
        ...


def part_path(part: int, dimensions: int) -> str:
    """Path of a part inside its array; only the first axis has more than one."""
    return "/".join(["c", str(part), *["0"] * (dimensions - 1)])


def open_reader(path: Path) -> Reader:
    """The reader for what lies at a path.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: a file that is neither a zip nor an HDF5 file.
    """
    if path.is_dir():
        return FolderReader(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such store")
    if zipfile.is_zipfile(path):
        return ZipReader(path)
    if h5py.is_hdf5(path):
        return Hdf5Reader(path)
    raise ValueError("neither a folder nor a zip or HDF5 file")


class FolderReader:
    """A folder, read by TensorStore: several times faster than zarr-python on the same files."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._arrays: dict[str, ts.TensorStore] = {}

    def metadata(self, name: str) -> Any:
        return json.loads((self._path / name / "zarr.json").read_text())

    def has(self, name: str, part: int) -> bool:
        return (self._path / name / part_path(part, self._array(name).rank)).exists()

    def digest(self, name: str, part: int) -> bytes | None:
        return sha256_file(self._path / name / part_path(part, self._array(name).rank))

    def read(self, name: str, where: Any) -> NDArray[Any]:
        return self._array(name)[where].read().result()

    def _array(self, name: str) -> ts.TensorStore:
        if name not in self._arrays:
            spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(self._path / name)}}
            self._arrays[name] = ts.open(
                spec, open=True, read=True, context=self._context, recheck_cached_data="open"
            ).result()
        return self._arrays[name]

    @cached_property
    def _context(self) -> ts.Context:
        return ts.Context({"cache_pool": {"total_bytes_limit": CACHE_BYTES}})


class ZipReader:
    """A zip whose entries are stored, read by zarr-python: of each entry only the bytes of the chunks that are needed.

    TensorStore's own zip driver hangs on larger entries, or reads them whole.
    """

    def __init__(self, path: Path) -> None:
        self._entries = ZipEntries(path)
        self._arrays: dict[str, zarr.Array[Any]] = {}

    def metadata(self, name: str) -> Any:
        try:
            return json.loads(self._entries.content(f"{name}/zarr.json".lstrip("/")))
        except zipfile.BadZipFile as error:
            raise ValueError(str(error)) from error

    def has(self, name: str, part: int) -> bool:
        return f"{name}/{part_path(part, self._array(name).ndim)}" in self._entries

    def digest(self, name: str, part: int) -> bytes | None:
        entry = self._entries.content(f"{name}/{part_path(part, self._array(name).ndim)}")
        return hashlib.sha256(entry).digest()

    def read(self, name: str, where: Any) -> NDArray[Any]:
        try:
            return np.asarray(self._array(name)[where])
        except (zipfile.BadZipFile, RuntimeError, OSError) as error:
            raise ValueError(str(error)) from error

    def _array(self, name: str) -> zarr.Array[Any]:
        if name not in self._arrays:
            try:
                self._arrays[name] = zarr.open_array(self._entries, path=name, mode="r", zarr_format=3)
            except Exception as error:  # altered metadata makes zarr stumble in many ways
                raise ValueError(f"{name}: {error}") from error
        return self._arrays[name]


class ZipEntries(Store):
    """The stored entries of a zip as a read-only Zarr store that answers byte ranges.

    Raises ValueError for compressed, encrypted or repeated entries.
    """

    supports_writes = supports_deletes = supports_partial_writes = False
    supports_listing = True

    def __init__(self, path: Path) -> None:
        super().__init__(read_only=True)
        self.path = path
        try:
            with zipfile.ZipFile(path) as archive:
                infos = archive.infolist()
        except (zipfile.BadZipFile, RuntimeError, OSError, OverflowError, struct.error) as error:
            raise ValueError(f"a damaged zip: {error}") from error
        self._infos = {info.filename: info for info in infos if not info.is_dir()}
        if len({info.filename for info in infos}) != len(infos):
            raise ValueError("two entries of the zip have one name")
        for info in infos:
            if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
                raise ValueError(f"entry {info.filename} of the zip is compressed or encrypted; store it as it is")
        self._file = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)
        self._starts: dict[str, int] = {}

    def __contains__(self, key: str) -> bool:
        return key in self._infos

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ZipEntries) and other.path == self.path

    def content(self, key: str) -> bytes:
        """A whole entry. Raises KeyError."""
        return self._bytes(key, 0, self._infos[key].file_size)

    def _bytes(self, key: str, start: int, stop: int) -> bytes:
        info = self._infos[key]
        if key not in self._starts:
            header = os.pread(self._file, 30, info.header_offset)
            if header[:4] != b"PK\x03\x04":
                raise zipfile.BadZipFile(f"entry {key} is not where the directory of the zip says")
            names = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
            self._starts[key] = info.header_offset + 30 + names
        content = os.pread(self._file, max(0, stop - start), self._starts[key] + start)
        if len(content) == info.file_size and zlib.crc32(content) != info.CRC:
            raise zipfile.BadZipFile(f"entry {key} of the zip does not match its checksum")
        return content

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        if key not in self._infos:
            return None
        start, stop = 0, self._infos[key].file_size
        if isinstance(byte_range, RangeByteRequest):
            start, stop = byte_range.start, min(stop, byte_range.end)
        elif isinstance(byte_range, OffsetByteRequest):
            start = byte_range.offset
        elif isinstance(byte_range, SuffixByteRequest):
            start = max(0, stop - byte_range.suffix)
        return prototype.buffer.from_bytes(self._bytes(key, start, stop))

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        return [await self.get(key, prototype, byte_range) for key, byte_range in key_ranges]

    async def exists(self, key: str) -> bool:
        return key in self._infos

    async def set(self, key: str, value: Buffer) -> None:
        raise io.UnsupportedOperation("a zip is read only")

    async def delete(self, key: str) -> None:
        raise io.UnsupportedOperation("a zip is read only")

    async def list(self) -> AsyncIterator[str]:
        for key in self._infos:
            yield key

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        for key in self._infos:
            if key.startswith(prefix):
                yield key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        folder = f"{prefix.rstrip('/')}/" if prefix else ""
        names = {key[len(folder) :].split("/")[0] for key in self._infos if key.startswith(folder)}
        for name in sorted(names):
            yield name


class Hdf5Reader:
    """An HDF5 file. Opened once per process: HDF5 has one lock for all its reading."""

    def __init__(self, path: Path) -> None:
        try:
            self._file = h5py.File(path, "r")
        except OSError as error:
            raise ValueError(f"a damaged HDF5 file: {error}") from error

    def metadata(self, name: str) -> Any:
        if not name:
            return {"attributes": json.loads(self._file.attrs["attributes"])}
        array = self._file[name]
        first = int(self._file.attrs["block_size"]) if not name.startswith("index/") else array.chunks[0]
        return {
            "shape": list(array.shape),
            "data_type": array.dtype.name,
            "chunk_grid": {"configuration": {"chunk_shape": [first, *array.shape[1:]]}},
        }

    def has(self, name: str, part: int) -> bool:
        return name in self._file

    def digest(self, name: str, part: int) -> bytes | None:
        return None

    def read(self, name: str, where: Any) -> NDArray[Any]:
        try:
            return np.asarray(self._file[name][where])
        except (OSError, KeyError) as error:
            raise ValueError(str(error)) from error

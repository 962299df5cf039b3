"""The arrays of a store in an HDF5 file."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from samdeblur.storage.access.boxes import Where, box_of
from samdeblur.storage.access.location import Location
from samdeblur.storage.format.layout import ArraySpec

MARGIN = 1024  # bytes by which a compressed chunk may be larger than the chunk
ZSTD = 32015  # the number HDF5 has given this filter


class Hdf5Reader:
    """An HDF5 file. Opened once per process: HDF5 has one lock for all its reading.

    Links that lead out of the file, or in circles, are refused.
    """

    has_shards = False
    lists = True
    absent: Mapping[str, NDArray[np.bool_]] = {}

    def __init__(self, location: Location) -> None:
        with suppress(ImportError):  # it tells HDF5 of zstd
            import hdf5plugin  # noqa: F401
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

    def digests(self, shards: Sequence[tuple[str, int]], arrays: Mapping[str, ArraySpec]) -> list[bytes | None]:
        return [None] * len(shards)

    def check(self, shard: tuple[str, int], spec: ArraySpec) -> tuple[bytes, bytes] | None:
        return None

    def read_whole(self, specs: Mapping[str, ArraySpec]) -> dict[str, NDArray[Any]]:
        return {name: self.read(name, spec, ...) for name, spec in specs.items()}

    def read(self, name: str, spec: ArraySpec, where: Where) -> NDArray[Any]:
        try:
            array = self._file[name]
            start, stop = box_of(where, spec.shape)
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

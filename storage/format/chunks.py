"""Decoding the chunks of format 1 out of the bytes of its files: for readers that fetch bytes and know no Zarr."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import google_crc32c
import numpy as np
from numcodecs.zstd import decompress
from numpy.typing import NDArray

from samdeblur.storage.format.layout import CRC_BYTES, DIGEST_BYTES, ArraySpec

ABSENT = np.uint64(2**64 - 1)

Span = tuple[int, int]
Fetch = Callable[[Sequence[Span]], Sequence[bytes]]  # byte ranges of one file, all at once


def decode_chunk(content: bytes, spec: ArraySpec) -> NDArray[Any]:
    """One chunk. Never allocates more than the chunk has by its specification.

    Raises:
        ValueError: it does not match its checksum, or is not a chunk of this array.
    """
    order = spec.order or tuple(range(len(spec.chunks)))
    chunk = np.empty([spec.chunks[axis] for axis in order], spec.dtype)
    try:
        decompress(checked(content), chunk)
    except RuntimeError as error:
        raise ValueError(f"a chunk cannot be decompressed: {error}") from error
    return chunk.transpose(np.argsort(order))


def checked(content: bytes) -> bytes:
    """The bytes before the CRC-32C they end in. Raises ValueError when it does not match."""
    body, crc = content[:-CRC_BYTES], content[-CRC_BYTES:]
    if len(content) <= CRC_BYTES or google_crc32c.value(body) != int.from_bytes(crc, "little"):
        raise ValueError("a chunk does not match its CRC-32C")
    return body


def tail_bytes(spec: ArraySpec) -> int:
    """Size of what a shard ends in: its digest, and its index."""
    return DIGEST_BYTES + spec.index_bytes


def shard_digest(content: bytes, spec: ArraySpec) -> bytes:
    """SHA-256 of a whole shard without the digest in it."""
    end = max(0, len(content) - spec.index_bytes)
    digest = hashlib.sha256(content[: max(0, end - DIGEST_BYTES)])
    digest.update(content[end:])
    return digest.digest()


def decode_index(content: bytes, spec: ArraySpec) -> NDArray[np.uint64]:
    """(chunks of the shard by axis..., 2): offset and size. Raises ValueError."""
    assert spec.shards is not None
    if len(content) != spec.index_bytes:
        raise ValueError("the index of a shard is cut off")
    grid = [shard // chunk for shard, chunk in zip(spec.shards, spec.chunks, strict=True)]
    return np.frombuffer(checked(content), "<u8").reshape(*grid, 2)


def read_shard(
    spec: ArraySpec, index: NDArray[np.uint64], fetch: Fetch, start: Sequence[int], stop: Sequence[int]
) -> NDArray[Any]:
    """The box from `start` to `stop` (per axis, inside the shard) out of one shard."""
    found = np.zeros([b - a for a, b in zip(start, stop, strict=True)], spec.dtype)
    axes = [range(a // size, -(-b // size)) for a, b, size in zip(start, stop, spec.chunks, strict=True)]
    cells = [cell for cell in itertools.product(*axes) if index[cell][0] != ABSENT]
    spans = [(int(index[cell][0]), int(index[cell][0]) + int(index[cell][1])) for cell in cells]
    if any(after - before > 2 * np.prod(spec.chunks) * found.itemsize + 1024 for before, after in spans):
        raise ValueError("a chunk is larger than a chunk of this array can be")
    for cell, content in zip(cells, fetch(spans), strict=True):
        put(found, start, decode_chunk(content, spec), [i * size for i, size in zip(cell, spec.chunks, strict=True)])
    return found


def put(box: NDArray[Any], corner: Sequence[int], chunk: NDArray[Any], place: Sequence[int]) -> None:
    """Copy what a box, which begins at `corner`, and a chunk, which begins at `place`, have in common."""
    into, out_of = [], []
    for first, size, begin, length in zip(corner, box.shape, place, chunk.shape, strict=True):
        low, high = max(first, begin), min(first + size, begin + length)
        into.append(slice(low - first, high - first))
        out_of.append(slice(low - begin, high - begin))
    box[tuple(into)] = chunk[tuple(out_of)]

"""Decoding the chunks of format 1 out of the bytes of its files: for readers that fetch bytes and know no Zarr."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import google_crc32c
import numpy as np
from numcodecs.zstd import decompress
from numpy.typing import NDArray

from samdeblur.storage.format.layout import CRC_BYTES, DIGEST_BYTES, ArraySpec

ABSENT = 2**64 - 1

Cell = tuple[int, ...]  # a chunk of a shard, by its place along each axis


def decode_chunk(content: bytes, spec: ArraySpec) -> NDArray[Any]:
    """One chunk. Never allocates more than the chunk has by its specification.

    Raises:
        ValueError: it does not match its checksum, or is not a chunk of this array.
    """
    order = spec.order or tuple(range(len(spec.chunks)))
    chunk = np.empty([spec.chunks[axis] for axis in order], spec.dtype)
    frame = checked(content)
    if frame_size(frame) != chunk.nbytes:
        raise ValueError("a chunk is not of the size that chunks of this array have")
    try:
        decompress(frame, chunk)
    except RuntimeError as error:
        raise ValueError(f"a chunk cannot be decompressed: {error}") from error
    return chunk.transpose(np.argsort(order))


def frame_size(frame: bytes) -> int | None:
    """What a frame of Zstandard says how large its content is (RFC 8878, 3.1.1.1); None when it does not say it."""
    if len(frame) < 6 or not frame.startswith(b"\x28\xb5\x2f\xfd"):
        return None
    single, flag = frame[4] >> 5 & 1, frame[4] >> 6
    start = 6 - single + (0, 1, 2, 4)[frame[4] & 3]
    length = (single, 2, 4, 8)[flag]
    return int.from_bytes(frame[start : start + length], "little") + (256 if length == 2 else 0) if length else None


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


def cells_within(spec: ArraySpec, start: Sequence[int], stop: Sequence[int]) -> Iterator[Cell]:
    """The chunks of a shard that a box from `start` to `stop` (per axis, inside the shard) touches."""
    axes = [range(a // size, -(-b // size)) for a, b, size in zip(start, stop, spec.chunks, strict=True)]
    return itertools.product(*axes)


def span_of(index: NDArray[np.uint64], cell: Cell, spec: ArraySpec) -> tuple[int, int] | None:
    """First and last byte (exclusive) of a chunk in its shard; None for one of zeros, which is not there.

    Raises:
        ValueError: no chunk of this array is as long.
    """
    first, size = (int(number) for number in index[cell])
    if first == ABSENT:
        return None
    if size > 2 * np.prod(spec.chunks) * np.dtype(spec.dtype).itemsize + 1024:
        raise ValueError("a chunk is larger than a chunk of this array can be")
    return first, first + size


def put(box: NDArray[Any], corner: Sequence[int], chunk: NDArray[Any], place: Sequence[int]) -> None:
    """Copy what a box, which begins at `corner`, and a chunk, which begins at `place`, have in common."""
    into, out_of = [], []
    for first, size, begin, length in zip(corner, box.shape, place, chunk.shape, strict=True):
        low, high = max(first, begin), min(first + size, begin + length)
        into.append(slice(low - first, high - first))
        out_of.append(slice(low - begin, high - begin))
    box[tuple(into)] = chunk[tuple(out_of)]

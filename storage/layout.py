"""Format 1 of the mask store: its arrays, their grids and codecs, and its attributes.

Shapes: I images, H W the extents (the largest image, rounded up to whole chunks), B images of a block.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec, ZstdCodec

from samdeblur.storage.files import DurableStore, fsync_path
from samdeblur.storage.readers import Reader, open_reader

FORMAT = 1
CHUNK = 256  # pixels on a side of a chunk of a plane
MAX_PAIRS = 65536
MAX_RECORDS = 4096
ERROR_BYTES = 160
INDEX_ROWS = 8192  # rows of a chunk of an index array
ZSTD_LEVEL = 3


RECORD_COLUMNS = (
    "area",
    "bbox_x",
    "bbox_y",
    "bbox_w",
    "bbox_h",
    "predicted_iou",
    "stability_score",
    "point_x",
    "point_y",
    "crop_box_x",
    "crop_box_y",
    "crop_box_w",
    "crop_box_h",
)

PENDING, DONE, QUARANTINED = 0, 1, 2
STATE_NAMES = ("pending", "done", "quarantined")
IMAGE_NAMES = ("blurred", "sharp")


class StoreError(ValueError):
    """A store that cannot be read as format 1, or settings that do not fit it."""


@dataclass(frozen=True)
class ArraySpec:
    """One Zarr array. `shards` is None for the index arrays."""

    shape: tuple[int, ...]
    dtype: str
    chunks: tuple[int, ...]
    shards: tuple[int, ...] | None = None
    attributes: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Header:
    """What a store says of itself: its attributes, and the sizes of its arrays."""

    dataset: str
    split: str
    recipe: Mapping[str, Any]
    digest: str  # "pixels" | "file"
    n_images: int
    extent: tuple[int, int]  # (H, W)
    key_bytes: int
    block_size: int
    images: bool

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.recipe)

    @property
    def n_blocks(self) -> int:
        return -(-self.n_images // self.block_size)

    def block_range(self, block: int) -> range:
        """Positions of the images of a block."""
        start = block * self.block_size
        return range(start, min(start + self.block_size, self.n_images))

    def data_arrays(self) -> dict[str, ArraySpec]:
        """The arrays that hold image content: one shard per block. Their order is the order of `index/shard_digest`."""
        images, block, (height, width) = self.n_images, self.block_size, self.extent
        columns = len(RECORD_COLUMNS)

        def plane(dtype: str, *channels: int) -> ArraySpec:
            return ArraySpec(
                (images, height, width, *channels),
                dtype,
                (1, CHUNK, CHUNK, *channels),
                (block, height, width, *channels),
            )

        arrays = {
            "atoms": plane("uint16"),
            "pairs": ArraySpec((images, MAX_PAIRS, 2), "uint16", (1, 2048, 2), (block, MAX_PAIRS, 2)),
            "records": ArraySpec(
                (images, MAX_RECORDS, columns),
                "float64",
                (1, 128, columns),
                (block, MAX_RECORDS, columns),
                {"columns": list(RECORD_COLUMNS)},
            ),
        }
        if self.images:
            arrays |= {f"images/{name}": plane("uint8", 3) for name in IMAGE_NAMES}
        return arrays

    def index_arrays(self) -> dict[str, ArraySpec]:
        """The arrays that say what there is, one row per image (or block)."""

        def rows(dtype: str, *row: int, count: int = self.n_images) -> ArraySpec:
            return ArraySpec((count, *row), dtype, (max(1, min(INDEX_ROWS, count)), *row))

        return {
            "index/key": rows("uint8", self.key_bytes),
            "index/shape": rows("int32", 2),
            "index/digest": rows("uint8", 32),
            "index/counts": rows("int32", 3),
            "index/state": rows("uint8"),
            "index/error": rows("uint8", ERROR_BYTES),
            "index/shard_digest": rows("uint8", len(self.data_arrays()), 32, count=self.n_blocks),
        }

    def attributes(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "dataset": self.dataset,
            "split": self.split,
            "recipe": dict(self.recipe),
            "fingerprint": self.fingerprint,
            "digest": self.digest,
        }


def fingerprint(recipe: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of a recipe written as JSON with sorted keys and no spaces."""
    text = json.dumps(recipe, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def pixel_digest(image: NDArray[np.uint8]) -> bytes:
    """SHA-256 (32 bytes) of height and width as little-endian int64, then the pixels of an (H, W, 3) uint8 image."""
    digest = hashlib.sha256(np.array(image.shape[:2], "<i8").tobytes())
    digest.update(np.ascontiguousarray(image).data)
    return digest.digest()


def pack_text(text: str, size: int) -> NDArray[np.uint8]:
    """UTF-8 zero-padded to `size` bytes, cut between characters when longer."""
    raw = text.encode()[:size].decode(errors="ignore").encode()
    return np.frombuffer(raw.ljust(size, b"\0"), np.uint8)


def unpack_text(raw: NDArray[np.uint8]) -> str:
    return raw.tobytes().rstrip(b"\0").decode()


def round_up(size: int, step: int = CHUNK) -> int:
    return max(step, -(-size // step) * step)


def create_store(path: Path, header: Header, keys: Sequence[str], shapes: NDArray[np.int32]) -> None:
    """Make a store with every image pending. It appears whole or not at all.

    Args:
        path: where; must not exist.
        header: attributes and sizes.
        keys: I names.
        shapes: (I, 2) int32 height, width; 0 0 where unknown.
    """
    building = path.with_name(path.name + ".creating")
    shutil.rmtree(building, ignore_errors=True)
    building.parent.mkdir(parents=True, exist_ok=True)
    group = zarr.create_group(DurableStore(building), attributes=header.attributes())
    for name, spec in header.data_arrays().items():
        create_array(group, name, spec)
    known: dict[str, Any] = {
        "index/key": np.stack([pack_text(key, header.key_bytes) for key in keys]),
        "index/shape": shapes,
    }
    with write_all_chunks():
        for name, spec in header.index_arrays().items():
            create_array(group, name, spec)[...] = known.get(name, 0)
    os.rename(building, path)
    fsync_path(path.parent)


@contextmanager
def write_all_chunks() -> Iterator[None]:
    """Arrays of the index are opened in here: they write chunks of zeros too, so that a missing chunk shows."""
    with zarr.config.set({"array.write_empty_chunks": True}):
        yield


def create_array(group: zarr.Group, name: str, spec: ArraySpec) -> zarr.Array[Any]:
    """An array of the format, with its codecs, empty."""
    return group.create_array(
        name,
        shape=spec.shape,
        dtype=spec.dtype,
        chunks=spec.chunks,
        shards=spec.shards,
        compressors=[ZstdCodec(level=ZSTD_LEVEL), Crc32cCodec()],
        fill_value=0,
        attributes=dict(spec.attributes or {}),
    )


def read_header(path: Path, reader: Reader | None = None) -> Header:
    """Read and check what a store on disk says of itself; `reader` is one that was opened for it already.

    Raises:
        FileNotFoundError: nothing there.
        StoreError: not a mask store of this format.
    """
    try:
        reader = reader or open_reader(path)
        attributes = reader.metadata("")["attributes"]
        if attributes["format"] != FORMAT:
            raise StoreError(f"{path}: store format {attributes['format']}, this version reads format {FORMAT}")
        key, atoms = reader.metadata("index/key"), reader.metadata("atoms")
        n_images, key_bytes = key["shape"]
        _, height, width = atoms["shape"]
        block_size = atoms["chunk_grid"]["configuration"]["chunk_shape"][0]
        if min(n_images, key_bytes, height, width, block_size) < 1:
            raise ValueError("an array or a block is empty")
        header = Header(
            dataset=attributes["dataset"],
            split=attributes["split"],
            recipe=attributes["recipe"],
            digest=attributes["digest"],
            n_images=n_images,
            extent=(height, width),
            key_bytes=key_bytes,
            block_size=block_size,
            images=_has_images(reader),
        )
        sound = attributes["fingerprint"] == header.fingerprint
    except StoreError:
        raise
    except FileNotFoundError as error:
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such store") from error
        raise StoreError(f"{path}: not a mask store ({type(error).__name__}: {error})") from error
    except (OSError, KeyError, TypeError, ValueError, IndexError) as error:
        raise StoreError(f"{path}: not a mask store ({type(error).__name__}: {error})") from error
    if not sound:
        raise StoreError(f"{path}: the fingerprint does not belong to the recipe beside it; the store was altered")
    return header


def _has_images(reader: Reader) -> bool:
    """Whether there is an array of images; with one alone the store is damaged, not without images."""
    for name in IMAGE_NAMES:
        with suppress(OSError, KeyError):
            reader.metadata(f"images/{name}")
            return True
    return False

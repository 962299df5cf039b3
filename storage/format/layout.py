"""Format 1 of the mask store: its arrays, their grids and codecs, and its attributes.

Shapes: I images, H W the extents (the largest image, rounded up to whole chunks), B images of a block.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from samdeblur.storage.files import sha256_file

if TYPE_CHECKING:
    import zarr  # half a second, which readers do without

FORMAT = 1
CHUNK = 256  # pixels on a side of a chunk of a plane
MAX_PAIRS = 65536
MAX_RECORDS = 4096
ERROR_BYTES = 160
INDEX_ROWS = 8192  # rows of a chunk of an index array
MASK_LEVEL = 15  # of zstd: a quarter smaller than level 3, for a tenth of a second more per image
IMAGE_LEVEL = 3  # photographs gain little from more
DIGEST_BYTES = 32
CRC_BYTES = 4
NO_SHARD = bytes(DIGEST_BYTES)  # in place of the digest of a shard without any chunk, which is not written

# What a reader takes on trust at most: a share that claims more is refused before anything is allocated for it.
MAX_IMAGES = 1 << 24
MAX_KEY_BYTES = 1024
MAX_NAME_BYTES = 1 << 30  # of all names together
MAX_SIDE = 1 << 15
MAX_PIXELS = 1 << 28
MAX_BLOCK = 4096
MAX_SHARD_CHUNKS = 1 << 20
MAX_FEATURES = 1 << 28  # numbers in a chunk of an embedding
MAX_MAPS = 64  # of an encoder

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
MASK_ARRAYS = ("atoms", "pairs", "records")
EMBEDDING_DIGEST = "index/embedding_digest"
Features = tuple[int, int, int, int]  # of one map of an encoder: crops of an image, and the three axes of each


class StoreError(ValueError):
    """A store that cannot be read as format 1, or settings that do not fit it."""


@dataclass(frozen=True)
class ArraySpec:
    """One Zarr array.

    Attributes:
        dims: names of the axes.
        chunks: shape of the pieces that are compressed, each by itself.
        shards: shape of a file of many chunks; None for the index arrays, whose chunks are files.
        order: of the axes of a chunk as it is stored; None for their own.
        level: of zstd.
    """

    shape: tuple[int, ...]
    dims: tuple[str, ...]
    dtype: str
    chunks: tuple[int, ...]
    shards: tuple[int, ...] | None = None
    order: tuple[int, ...] | None = None
    level: int = MASK_LEVEL
    attributes: Mapping[str, Any] | None = None

    @property
    def part_rows(self) -> int:
        """Rows of the first axis in one file."""
        return (self.shards or self.chunks)[0]

    @property
    def n_parts(self) -> int:
        return -(-self.shape[0] // self.part_rows)

    @property
    def index_bytes(self) -> int:
        """Size of the index that a shard ends in: offset and size of every chunk, and a CRC-32C."""
        assert self.shards is not None
        return math.prod(shard // chunk for shard, chunk in zip(self.shards, self.chunks, strict=True)) * 16 + CRC_BYTES

    def part_path(self, part: int) -> str:
        """Path of a file inside its array; only the first axis has more than one."""
        return "/".join(["c", str(part), *["0"] * (len(self.shape) - 1)])

    def document(self) -> dict[str, Any]:
        """The array's zarr.json."""
        return {
            "shape": list(self.shape),
            "data_type": self.dtype,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(self.shards or self.chunks)}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": 0,
            "codecs": self._codecs(),
            "dimension_names": list(self.dims),
            "attributes": dict(self.attributes or {}),
            "zarr_format": 3,
            "node_type": "array",
            "storage_transformers": [],
        }

    def _codecs(self) -> list[Any]:
        little = {"name": "bytes", "configuration": {"endian": "little"}}
        transpose = [{"name": "transpose", "configuration": {"order": list(self.order)}}] if self.order else []
        plain = [
            *transpose,
            little if np.dtype(self.dtype).itemsize > 1 else {"name": "bytes"},
            {"name": "zstd", "configuration": {"level": self.level, "checksum": False}},
            {"name": "crc32c"},
        ]
        if self.shards is None:
            return plain
        sharding = {
            "chunk_shape": list(self.chunks),
            "codecs": plain,
            "index_codecs": [little, {"name": "crc32c"}],
            "index_location": "end",
        }
        return [{"name": "sharding_indexed", "configuration": sharding}]


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
    seal: str = field(default="", compare=False)  # as read from a store
    embeddings: tuple[Features, ...] = ()  # of each map of the encoder, where they are kept

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

        def plane(dtype: str, *channels: int, level: int = MASK_LEVEL) -> ArraySpec:
            return ArraySpec(
                (images, height, width, *channels),
                ("image", "y", "x", "channel")[: 3 + len(channels)],
                dtype,
                (1, CHUNK, CHUNK, *channels),
                (block, height, width, *channels),
                level=level,
            )

        arrays = {
            "atoms": plane("uint16"),
            "pairs": ArraySpec(
                (images, MAX_PAIRS, 2),
                ("image", "pair", "side"),
                "uint16",
                (1, 2048, 2),
                (block, MAX_PAIRS, 2),
                (0, 2, 1),
            ),
            "records": ArraySpec(
                (images, MAX_RECORDS, columns),
                ("image", "mask", "column"),
                "float64",
                (1, 128, columns),
                (block, MAX_RECORDS, columns),
                (0, 2, 1),
                attributes={"columns": list(RECORD_COLUMNS)},
            ),
        }
        if self.images:
            arrays |= {f"images/{name}": plane("uint8", 3, level=IMAGE_LEVEL) for name in IMAGE_NAMES}
        for number, features in enumerate(self.embeddings):  # last: what leaves them out has the same order
            arrays[f"embeddings/{number}"] = ArraySpec(
                (images, *features),
                ("image", "crop", *(f"{axis}{number}" for axis in "cyx")),
                "float16",
                (1, 1, *features[1:]),
                (block, *features),
                level=IMAGE_LEVEL,
            )
        return arrays

    def index_arrays(self) -> dict[str, ArraySpec]:
        """The arrays that say what there is, one row per image (or block)."""

        def rows(dtype: str, row: Mapping[str, int], per: str = "image", count: int = self.n_images) -> ArraySpec:
            sizes = tuple(row.values())
            return ArraySpec((count, *sizes), (per, *row), dtype, (max(1, min(INDEX_ROWS, count)), *sizes))

        maps = len(self.embeddings)
        arrays = len(self.data_arrays()) - maps
        found = {
            "index/key": rows("uint8", {"key_byte": self.key_bytes}),
            "index/shape": rows("int32", {"side": 2}),
            "index/digest": rows("uint8", {"digest_byte": DIGEST_BYTES}),
            "index/counts": rows("int32", {"count": 3}),
            "index/state": rows("uint8", {}),
            "index/error": rows("uint8", {"error_byte": ERROR_BYTES}),
            "index/shard_digest": rows("uint8", {"array": arrays, "digest_byte": DIGEST_BYTES}, "block", self.n_blocks),
        }
        if maps:
            row = {"array": maps, "digest_byte": DIGEST_BYTES}
            found[EMBEDDING_DIGEST] = rows("uint8", row, "block", self.n_blocks)
        return found

    @cached_property
    def arrays(self) -> dict[str, ArraySpec]:
        """All of them."""
        return self.index_arrays() | self.data_arrays()

    @property
    def groups(self) -> list[str]:
        """Those below the root."""
        return ["index", *["images"] * self.images, *["embeddings"] * bool(self.embeddings)]

    def metadata(self) -> dict[str, Any]:
        """The metadata of all arrays and groups, by name, as the root repeats them."""
        documents = {name: spec.document() for name, spec in self.arrays.items()}
        return documents | dict.fromkeys(self.groups, _group({}, {}))

    def root(self, seal: str) -> dict[str, Any]:
        """The zarr.json of the root."""
        return _group(self.attributes() | {"seal": seal}, self.metadata())

    def attributes(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "dataset": self.dataset,
            "split": self.split,
            "recipe": dict(self.recipe),
            "fingerprint": self.fingerprint,
            "digest": self.digest,
        }


def _group(attributes: Mapping[str, Any], metadata: Mapping[str, Any]) -> dict[str, Any]:
    """A group's zarr.json with the metadata below it, in the form of zarr-python: readers need one file to know all."""
    inline = {"kind": "inline", "must_understand": False, "metadata": dict(metadata)}
    return {
        "attributes": dict(attributes),
        "zarr_format": 3,
        "consolidated_metadata": inline,
        "node_type": "group",
    }


def seal(attributes: Mapping[str, Any], keys: NDArray[np.uint8], shapes: NDArray[np.int32]) -> str:
    """SHA-256 (hex) of what a store is of: its attributes as JSON, its names, its shapes (which a retry may mend)."""
    kept = {name: attributes[name] for name in ("format", "dataset", "split", "recipe", "digest")}
    digest = hashlib.sha256(_compact(kept))
    digest.update(keys.tobytes())
    digest.update(shapes.astype("<i4").tobytes())
    return digest.hexdigest()


def fingerprint(recipe: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of a recipe written as JSON with sorted keys and no spaces."""
    return hashlib.sha256(_compact(recipe)).hexdigest()


def mask_kind(recipe: Mapping[str, Any]) -> str:
    """What found the masks of a recipe, in a word, with the start of a digest of its settings.

    What the images were pre-deblurred with makes no difference: the paper does that for training alone.
    """
    if isinstance(imported := recipe.get("imported"), Mapping):
        claims = imported.get("claims")
        return mask_kind(claims) if isinstance(claims, Mapping) else f"imported {imported.get('format', '')}".strip()
    segmenter = recipe.get("segmenter", recipe)
    name = segmenter.get("name", "masks") if isinstance(segmenter, Mapping) else segmenter
    more = {"refine": recipe["refine"]} if "refine" in recipe else {}
    return f"{name} {fingerprint({'segmenter': segmenter, 'mode': recipe.get('mode'), **more})[:8]}"


def _compact(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


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


def pack_keys(keys: Sequence[str], key_bytes: int) -> NDArray[np.uint8]:
    """(I, key_bytes) UTF-8, zero-padded."""
    text = np.array([key.encode() for key in keys], f"S{key_bytes}")
    return text.view(np.uint8).reshape(len(keys), key_bytes)


def unpack_keys(raw: NDArray[np.uint8]) -> list[str]:
    """The names in (I, key_bytes). Raises ValueError when one is not UTF-8."""
    return [text.decode() for text in np.ascontiguousarray(raw).view(f"S{raw.shape[1]}")[:, 0].tolist()]


def writing_all_chunks(array: zarr.Array[Any]) -> zarr.Array[Any]:
    """An array of the index: it writes chunks of zeros too, so that a missing chunk shows."""
    return array.with_config({"write_empty_chunks": True})


def leaving_out_zeros(array: zarr.Array[Any]) -> zarr.Array[Any]:
    """An array of what is in images: chunks of zeros are not written, whatever zarr's own settings are."""
    return array.with_config({"write_empty_chunks": False})


def create_array(group: zarr.Group, name: str, spec: ArraySpec) -> zarr.Array[Any]:
    """An array of the format, with its codecs, empty."""
    from zarr.codecs import Crc32cCodec, TransposeCodec, ZstdCodec

    return group.create_array(
        name,
        shape=spec.shape,
        dtype=spec.dtype,
        chunks=spec.chunks,
        shards=spec.shards,
        filters=[TransposeCodec(order=spec.order)] if spec.order else None,
        compressors=[ZstdCodec(level=spec.level), Crc32cCodec()],
        fill_value=0,
        attributes=dict(spec.attributes or {}),
        dimension_names=spec.dims,
    )


def finish_shard(shard: Path, spec: ArraySpec) -> bytes:
    """Put into a shard file, before the index it ends in, the SHA-256 of what is in it, and return that.

    A reader compares these 32 bytes with the store's index before it takes anything from a shard: a whole shard from
    another place is then as recognisable as a damaged one, for 32 bytes beside the index that it reads anyway. Zarr
    goes by the offsets in the shard's index, and does not see them.
    """
    digest = sha256_file(shard)
    with open(shard, "r+b") as file:
        file.seek(-spec.index_bytes, os.SEEK_END)
        index = file.read()
        file.seek(-spec.index_bytes, os.SEEK_END)
        file.write(digest + index)
        file.flush()
        os.fsync(file.fileno())
    return digest

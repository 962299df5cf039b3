"""Opening: what a store says of itself, checked against the format before anything is taken on trust."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from samdeblur.storage.access.files import Unreachable
from samdeblur.storage.access.location import Location, without_secrets
from samdeblur.storage.access.places import refusal
from samdeblur.storage.access.readers import Reader, open_reader
from samdeblur.storage.format.layout import (
    CHUNK,
    EMBEDDING_DIGEST,
    FORMAT,
    IMAGE_NAMES,
    MASK_ARRAYS,
    MAX_BLOCK,
    MAX_FEATURES,
    MAX_IMAGES,
    MAX_KEY_BYTES,
    MAX_MAPS,
    MAX_NAME_BYTES,
    MAX_PIXELS,
    MAX_SHARD_CHUNKS,
    MAX_SIDE,
    Features,
    Header,
    StoreError,
)

Opened = tuple[Location, Reader, Header]
DIGESTS = ("pixels", "file", "none")
GROUP = {"attributes": {}, "zarr_format": 3, "node_type": "group"}


def open_checked(location: Location | Path | str) -> Opened:
    """A store's reader, and the header, whose arrays are all there and as the format asks.

    Raises:
        FileNotFoundError: nothing there.
        StoreError: not a mask store of this format.
        Unreachable: a server that does not answer, or sends no parts of files.
    """
    try:
        place = location if isinstance(location, Location) else Location(str(location))
    except ValueError as error:
        raise StoreError(f"{without_secrets(str(location))}: not a mask store ({error})") from error
    try:
        reader = open_reader(place)
        header, documents = claimed_header(reader, brief=not reader.lists)
    except (FileNotFoundError, StoreError):
        raise
    except Unreachable as error:
        if place.remote:
            raise
        raise refusal(place.path, str(place), error) from error
    except (OSError, ValueError) as error:
        if place.remote:
            raise StoreError(f"{place}: not a mask store ({error})") from error
        raise refusal(place.path, str(place), error) from error
    for problem in document_problems(header, documents):
        raise StoreError(f"{place}: not a mask store of format {FORMAT} ({problem})")
    return place, reader, header


def read_header(path: Path) -> Header:
    """What a store says of itself. Raises as `open_checked`."""
    return open_checked(path)[2]


def claimed_header(reader: Reader, brief: bool = False) -> tuple[Header, dict[str, Any]]:
    """The header by the claims of the root and of three arrays, within bounds, and the metadata of everything there is.

    A server is not asked for what the number of digests of a block says is not there.

    Args:
        brief: take the metadata of the arrays as the root repeats it, where it does.

    Raises:
        ValueError: metadata is missing or cannot be read.
        Unreachable: as `open_checked`.
    """
    root = reader.documents([""])
    if "" not in root:
        raise ValueError("zarr.json is missing")
    images = [f"images/{name}" for name in IMAGE_NAMES]
    try:
        documents = root | (_repeated(root[""]) if brief else {})
        if len(documents) == 1:
            names = [*Header("", "", {}, "", 1, (CHUNK, CHUNK), 1, 1, False).arrays, "index"]
            documents |= reader.documents([*names, *images, "images"] if reader.lists else names)
        with_images = _whole(documents["index/shard_digest"]["shape"], 3)[1] > len(MASK_ARRAYS)
        if with_images and "images" not in documents:
            documents |= reader.documents([*images, "images"])
        maps = _embeddings(reader, documents)
        attributes = documents[""]["attributes"]
        if attributes["format"] != FORMAT:
            raise ValueError(f"store format {attributes['format']!r}, this version reads format {FORMAT}")
        n_images, key_bytes = _whole(documents["index/key"]["shape"], 2)
        _, height, width = _whole(documents["atoms"]["shape"], 3)
        block_size = _whole(documents["atoms"]["chunk_grid"]["configuration"]["chunk_shape"], 3)[0]
        header = Header(
            dataset=attributes["dataset"],
            split=attributes["split"],
            recipe=attributes["recipe"],
            digest=attributes["digest"],
            n_images=n_images,
            extent=(height, width),
            key_bytes=key_bytes,
            block_size=block_size,
            images=with_images,
            seal=attributes["seal"],
            embeddings=maps,
        )
        _check_claims(header)
        if attributes["fingerprint"] != header.fingerprint:
            raise ValueError("the fingerprint does not belong to the recipe beside it; the store was altered")
    except KeyError as error:
        raise ValueError(f"{error} is missing in its metadata") from error
    except (TypeError, IndexError, RecursionError) as error:
        raise ValueError(f"metadata that cannot be read: {type(error).__name__}: {error}") from error
    return header, documents


def _embeddings(reader: Reader, documents: dict[str, Any]) -> tuple[Features, ...]:
    """Shapes of the embeddings that are there, whose metadata joins the rest; none behind a server that says nothing
    of them.
    """
    if reader.lists:
        documents |= reader.documents([EMBEDDING_DIGEST])
    if EMBEDDING_DIGEST not in documents:
        return ()
    names = [f"embeddings/{number}" for number in range(_whole(documents[EMBEDDING_DIGEST]["shape"], 3)[1])]
    if len(names) > MAX_MAPS:
        raise ValueError(f"it claims {len(names)} embeddings of an image, more than the format allows")
    if reader.lists:
        documents |= reader.documents([*names, "embeddings"])
    found = [_whole(documents[name]["shape"], 5) for name in names]
    return tuple((crops, first, second, third) for _, crops, first, second, third in found)


def document_problems(header: Header, documents: dict[str, Any], exact: bool = False) -> Iterator[str]:
    """What the metadata of arrays and groups differ in from the format.

    Args:
        exact: take nothing that merely reads the same, such as another level of zstd or more attributes.
    """
    if "chunks" not in documents.get("atoms", {}):  # HDF5 has groups of its own
        for group in header.groups:
            if group not in documents:
                yield f"{group}/zarr.json: missing"
            elif exact and documents[group] != GROUP:
                yield f"{group}/zarr.json: not the metadata of a group"
    if exact and "chunks" not in documents.get("atoms", {}) and _repeated(documents[""]) != header.metadata():
        yield "zarr.json: its consolidated_metadata differs from the metadata of the arrays"
    for name, spec in header.arrays.items():
        found = documents.get(name)
        if found is None:
            yield f"{name}/zarr.json: missing"
            continue
        expected = spec.document()
        try:
            if "chunks" in found:
                sound = found["chunks"] == list(spec.chunks) and all(
                    found[item] == expected[item] for item in ("shape", "data_type")
                )
            else:
                sound = (found if exact else _essence(found)) == (expected if exact else _essence(expected))
        except (TypeError, KeyError, AttributeError, RecursionError):
            sound = False
        if not sound:
            yield f"{name}/zarr.json: {_difference(found, expected)}"


def _repeated(root: dict[str, Any]) -> dict[str, Any]:
    """The metadata of everything below the root, as far as the root repeats it."""
    found = root.get("consolidated_metadata")
    return dict(found["metadata"]) if found else {}


def _check_claims(header: Header) -> None:
    """Raise ValueError for a header that no sound store has, before anything is allocated by it."""
    height, width = header.extent
    texts = (header.dataset, header.split, header.seal)
    if not all(isinstance(text, str) for text in texts) or not isinstance(header.recipe, dict):
        raise ValueError("dataset, split or recipe is not what it should be")
    if header.digest not in DIGESTS:
        raise ValueError(f"digest is {header.digest!r}, not one of {', '.join(DIGESTS)}")
    if min(header.n_images, header.key_bytes, height, width, header.block_size) < 1:
        raise ValueError("an array or a block is empty")
    chunks = header.block_size * max(-(-height // CHUNK) * -(-width // CHUNK), 32)
    limits = {
        f"{header.n_images} images": header.n_images > MAX_IMAGES,
        f"names of {header.key_bytes} bytes": header.key_bytes > MAX_KEY_BYTES,
        f"{header.n_images} names of {header.key_bytes} bytes": header.n_images * header.key_bytes > MAX_NAME_BYTES,
        f"images of {width}x{height}": max(height, width) > MAX_SIDE or height * width > MAX_PIXELS,
        f"blocks of {header.block_size} images": header.block_size > MAX_BLOCK or chunks > MAX_SHARD_CHUNKS,
    }
    for crops, *sides in header.embeddings:
        if min(crops, *sides) < 1:
            raise ValueError("an array of embeddings is empty")
        most = max(sides) > MAX_SIDE or math.prod(sides) > MAX_FEATURES or header.block_size * crops > MAX_SHARD_CHUNKS
        limits[f"embeddings of {crops} x {' x '.join(map(str, sides))}"] = most
    for claim, absurd in limits.items():
        if absurd:
            raise ValueError(f"it claims {claim}, more than the format allows")
    if height % CHUNK or width % CHUNK:
        raise ValueError(f"images of {width}x{height} are not whole chunks")


def _whole(shape: Any, length: int) -> tuple[int, ...]:
    """Sizes that are integers. Raises ValueError."""
    if not isinstance(shape, list) or len(shape) != length or not all(type(size) is int for size in shape):
        raise ValueError(f"a shape is {str(shape)[:80]}, not {length} sizes")
    return tuple(shape)


def _essence(document: dict[str, Any]) -> dict[str, Any]:
    """What a reader depends on: no level of compression, and no attributes but those of the format."""
    document = json.loads(json.dumps(document))
    codecs = list(document["codecs"])
    for codec in codecs:
        codecs += codec.get("configuration", {}).get("codecs", [])
        if codec["name"] == "zstd":
            codec["configuration"] = {}
        if codec["name"] == "bytes" and document["data_type"] == "uint8":
            codec.pop("configuration", None)
    document["attributes"] = {"columns": document.get("attributes", {}).get("columns")}
    document.pop("storage_transformers", None)
    return document


def _difference(found: Any, expected: dict[str, Any]) -> str:
    if isinstance(found, dict):
        for item, value in expected.items():
            if item in found and found[item] != value:
                return f"{item} is {str(found[item])[:120]}, the format asks for {str(value)[:120]}"
    return "not the metadata of this array"

"""What could make atoms smaller with portable codecs of Zarr: chunks, numbering of the atoms, levels, shuffles.

python -m benchmarks.storage.codecs

Bytes per image and encoding time of the label planes and tables of dense_masks.py, and the time to decode the chunks of
a 256 px crop. Prints a table, writes benchmarks/results/codecs.json. The store's own choice is marked.
"""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numcodecs import Blosc, GZip, Zstd
from numpy.typing import NDArray

from benchmarks.common.dense_masks import dense_masks
from benchmarks.common.figures import RESULTS
from samdeblur.storage import AtomMap

SCENES = 4
INDEX_BYTES = 16 + 4  # of a chunk: offset and size in the index of its shard, CRC-32C

Change = Callable[[AtomMap], NDArray[np.uint16]]


def first_pixels(atoms: AtomMap) -> NDArray[np.int64]:
    """(K,) position in raster order of the first pixel of each atom."""
    first = np.full(atoms.n_atoms + 1, atoms.atoms.size)
    flat = atoms.atoms.ravel()
    first[flat[::-1]] = np.arange(flat.size - 1, -1, -1)
    return first[1:]


def renumber(atoms: AtomMap, order: NDArray[np.int64]) -> NDArray[np.uint16]:
    number = np.zeros(atoms.n_atoms + 1, np.uint16)
    number[order + 1] = np.arange(1, atoms.n_atoms + 1)
    return number[atoms.atoms]


def by_area(atoms: AtomMap) -> NDArray[np.uint16]:
    return renumber(atoms, np.argsort(-atoms.atom_areas()[1:], kind="stable"))


def by_masks(atoms: AtomMap) -> NDArray[np.uint16]:
    return renumber(atoms, np.lexsort(atoms.mask_table()[1:].T[::-1]))


def by_chunk(atoms: AtomMap) -> NDArray[np.uint16]:
    first = first_pixels(atoms)
    row, column = np.divmod(first, atoms.shape[1])
    return renumber(atoms, np.lexsort((first, column // 256, row // 256)))


def pieces(plane: NDArray[Any], size: int) -> list[NDArray[Any]]:
    height, width = (-(-side // size) * size for side in plane.shape)
    padded = np.zeros((height, width), plane.dtype)
    padded[: plane.shape[0], : plane.shape[1]] = plane
    return [
        np.ascontiguousarray(padded[top : top + size, left : left + size])
        for top in range(0, height, size)
        for left in range(0, width, size)
    ]


def table_pieces(pairs: NDArray[np.uint16], rows: int, transposed: bool) -> list[NDArray[np.uint16]]:
    padded = np.zeros((-(-len(pairs) // rows) * rows, 2), np.uint16)
    padded[: len(pairs)] = pairs
    chunks = [padded[start : start + rows] for start in range(0, len(padded), rows)]
    return [np.ascontiguousarray(chunk.T if transposed else chunk) for chunk in chunks]


def measure(name: str, codec: Any, images: list[list[NDArray[Any]]], touched: float) -> dict[str, Any]:
    """Bytes and times per image; `touched` chunks are decoded for a crop, on average."""
    sizes, encode, decode = [], [], []
    for chunks in images:
        start = time.perf_counter()
        packed = [codec.encode(chunk) for chunk in chunks]
        encode.append(time.perf_counter() - start)
        start = time.perf_counter()
        for chunk in packed:
            codec.decode(chunk)
        decode.append((time.perf_counter() - start) / len(packed) * touched)
        sizes.append(sum(len(chunk) + INDEX_BYTES for chunk in packed))
    return {
        "what": name,
        "bytes per image": round(statistics.mean(sizes)),
        "encode ms": round(1e3 * statistics.median(encode), 1),
        "decode of a crop ms": round(1e3 * statistics.median(decode), 3),
    }


def main() -> None:
    maps = [AtomMap.from_masks(dense_masks(seed)) for seed in range(SCENES)]
    planes = [atoms.atoms for atoms in maps]

    def plane_rows(
        name: str, codec: Any, size: int = 256, arranged: list[NDArray[Any]] | None = None
    ) -> dict[str, Any]:
        images = [pieces(plane, size) for plane in (arranged or planes)]
        return measure(f"atoms: {name}", codec, images, ((255 + size) / size) ** 2)

    rows = [plane_rows(f"zstd {level}", Zstd(level)) for level in (1, 3, 9, 12, 15, 17, 19)]
    rows += [plane_rows(f"zstd 15, chunks of {size}", Zstd(15), size) for size in (128, 512)]
    orders: dict[str, Change] = {"area": by_area, "sets of masks": by_masks, "chunk": by_chunk}
    for name, change in orders.items():
        rows.append(plane_rows(f"zstd 15, numbered by {name}", Zstd(15), arranged=[change(a) for a in maps]))
    rows.append(plane_rows("zstd 15, transposed", Zstd(15), arranged=[plane.T for plane in planes]))
    rows.append(plane_rows("gzip 6", GZip(6)))
    for name, shuffle in (("no shuffle", 0), ("shuffle", 1), ("bit shuffle", 2)):
        rows.append(plane_rows(f"blosc zstd 8, {name}", Blosc("zstd", 8, shuffle)))
    numbered = [by_chunk(atoms) for atoms in maps]
    rows.append(plane_rows("blosc zstd 8, shuffle, numbered by chunk", Blosc("zstd", 8, 1), arranged=numbered))
    for transposed in (False, True):
        for name, codec in (("zstd 3", Zstd(3)), ("zstd 15", Zstd(15)), ("blosc zstd 8, shuffle", Blosc("zstd", 8, 1))):
            images = [table_pieces(atoms.pairs, 2048, transposed) for atoms in maps]
            touched = statistics.mean(len(chunks) for chunks in images)
            rows.append(measure(f"pairs: {name}{', transposed' if transposed else ''}", codec, images, touched))
    chosen = ("atoms: zstd 15", "pairs: zstd 15, transposed")
    for row in rows:
        row["chosen"] = row["what"] in chosen
        mark = "*" if row["chosen"] else " "
        print(f"{mark} {row['what']:48}" + "".join(f"{value:>12}" for value in list(row.values())[1:4]))
    out = RESULTS / "codecs.json"
    out.write_text(json.dumps({"machine": f"{platform.machine()}, one core", "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()

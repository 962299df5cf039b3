"""How images are best kept in a store: codecs and chunks of Zarr by bytes, writing time and random crops per second.

python -m benchmarks.storage.image_codecs [--pairs FOLDER]

Each way is an array as the format has it (sharded, blocks of 8 images, crc32c last) with other codecs or chunks. It is
written by zarr-python as a worker does and read by the package's own reader, both on one core. The images: those of
the embedded sample that have colours, side by side in one image of 1024x512, and with --pairs the pairs of a folder,
such as one of GoPro. Images and shards repeat until there are 2048 images, so that hardly a chunk is found in the
reader's cache; the files lie in the page cache. The ways take turns, times are those of the processor, and reads
during which another program had the core do not count. Prints tables, writes benchmarks/results/image_codecs.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import zarr
from numpy.typing import NDArray
from PIL import Image

from benchmarks.common.figures import RESULTS
from samdeblur.pipeline import open_source
from samdeblur.storage.access.files import open_files
from samdeblur.storage.access.location import Location
from samdeblur.storage.access.readers import ChunkReader
from samdeblur.storage.format.layout import CHUNK, IMAGE_LEVEL, IMAGE_NAMES, ArraySpec, round_up

IMAGES = 2048  # about as many as GoPro has for training
BLOCK = 8
SIDE = 256  # of a crop
CROPS = 2  # of a way in a turn, after as many that do not count
TURNS = 240
WHOLE_TURNS = 80  # of them, with a whole pair too
WRITES = 3
DISTURBED = 1.15  # seconds over those of the processor from which a read does not count

Pair = tuple[NDArray[np.uint8], NDArray[np.uint8]]  # blurred and sharp, (H, W, 3)
Files = list[tuple[Path, Path]]  # of blurred and sharp images


@dataclass(frozen=True)
class Way:
    """Codecs before crc32c, as zarr.json has them, and the sides of a chunk."""

    name: str
    compressors: tuple[dict[str, Any], ...]
    planar: bool = False
    chunk: tuple[int, int] = (CHUNK, CHUNK)


def zstd(level: int, chunk: int = CHUNK, planar: bool = False) -> Way:
    codec = {"name": "zstd", "configuration": {"level": level, "checksum": False}}
    return Way(f"zstd {level}", (codec,), planar, (chunk, chunk))


def blosc(inner: str, level: int, shuffle: str, typesize: int, chunk: int = CHUNK, planar: bool = False) -> Way:
    """Blosc over the whole chunk, or for byte shuffles and none in the blocks it chooses itself."""
    whole = chunk * chunk * 3 if shuffle == "bitshuffle" else 0
    values = {"cname": inner, "clevel": level, "shuffle": shuffle, "typesize": typesize, "blocksize": whole}
    name = f"blosc {inner} {level}, {shuffle} of {typesize}" if shuffle != "noshuffle" else f"blosc {inner} {level}"
    return Way(name, ({"name": "blosc", "configuration": values},), planar, (chunk, chunk))


PRESENT = zstd(IMAGE_LEVEL)
WAYS = (
    PRESENT,
    Way("zstd 3, measured again", PRESENT.compressors),
    Way("none", ()),
    *(zstd(level) for level in (-1, 1, 6, 9, 15)),
    Way("gzip 6", ({"name": "gzip", "configuration": {"level": 6}},)),
    *(zstd(level, planar=True) for level in (3, 15)),
    blosc("lz4", 5, "shuffle", 3),
    *(blosc("lz4", level, "bitshuffle", 3) for level in (5, 9)),
    blosc("lz4hc", 9, "noshuffle", 1),
    blosc("lz4hc", 9, "bitshuffle", 1),
    *(blosc("zstd", level, "shuffle", 3) for level in (1, 5, 9)),
    *(blosc("zstd", level, "bitshuffle", 3) for level in (1, 5)),
    blosc("zstd", 1, "bitshuffle", 1),
    blosc("lz4", 5, "bitshuffle", 1, planar=True),
    *(blosc("zstd", level, "bitshuffle", 1, planar=True) for level in (1, 5)),
    *(zstd(level, 128) for level in (1, 3, 6, 9, 15)),
    zstd(15, 128, planar=True),
    blosc("lz4hc", 9, "noshuffle", 1, 128),
    *(blosc("zstd", level, "bitshuffle", 3, 128) for level in (1, 5)),
    *(Way(f"zstd {level}", zstd(level).compressors, chunk=(128, 256)) for level in (6, 15)),
    zstd(6, 64),
    *(zstd(level, 512) for level in (3, 15)),
)


@dataclass(frozen=True)
class ImagesArray(ArraySpec):
    """The array of a way: what the format says, with other codecs between `bytes` and `crc32c`."""

    compressors: tuple[dict[str, Any], ...] = ()

    def document(self) -> dict[str, Any]:
        document = super().document()
        document["codecs"][0]["configuration"]["codecs"][-2:-1] = self.compressors
        return document


def array_of(way: Way, shapes: Sequence[tuple[int, int]]) -> ImagesArray:
    """For images of these heights and widths; sides are whole chunks, and at least multiples of 256."""
    extent = [round_up(max(shape[axis] for shape in shapes), max(CHUNK, way.chunk[axis])) for axis in range(2)]
    return ImagesArray(
        (IMAGES, *extent, 3),
        "uint8",
        (1, *way.chunk, 3),
        (BLOCK, *extent, 3),
        (0, 3, 1, 2) if way.planar else None,
        compressors=way.compressors,
    )


class Stored:
    """Both images of all pairs, kept in one way."""

    def __init__(self, way: Way, folder: Path, pairs: list[Pair]) -> None:
        self.way, self._folder, self._pairs = way, folder, pairs
        self._shapes = [pair[0].shape[:2] for pair in pairs]
        self._spec = array_of(way, self._shapes)
        self._blocks = [self._block(kind) for kind in range(len(IMAGE_NAMES))]
        self._reader = ChunkReader(open_files(Location(str(folder))))
        for name in IMAGE_NAMES:
            (folder / name / "c" / "0").mkdir(parents=True)
            (folder / name / "zarr.json").write_text(json.dumps(self._spec.document()))
            for part in range(1, self._spec.n_parts):
                (folder / name / "c" / str(part)).symlink_to("0")

    def _block(self, kind: int) -> NDArray[np.uint8]:
        """(BLOCK, H, W, 3): the blurred or the sharp images of a block, with zeros after them."""
        block = np.zeros(self._spec.shards or (), np.uint8)
        for number in range(BLOCK):
            image = self._pairs[number % len(self._pairs)][kind]
            block[number, : image.shape[0], : image.shape[1]] = image
        return block

    @property
    def pixels(self) -> int:
        """Of one image of each pair of a block."""
        return sum(int(np.prod(self._shapes[number % len(self._shapes)])) for number in range(BLOCK))

    def write(self) -> float:
        """Write a block of both arrays with zarr-python; seconds per megapixel."""
        start = time.process_time()
        for name, block in zip(IMAGE_NAMES, self._blocks, strict=True):
            zarr.open_array(self._folder / name, mode="r+")[:BLOCK] = block
        return (time.process_time() - start) / (2 * self.pixels / 1e6)

    def check(self) -> None:
        """Zarr-python and TensorStore both read what was written."""
        for name, block in zip(IMAGE_NAMES, self._blocks, strict=True):
            for found in (
                zarr.open_array(self._folder / name, mode="r")[:BLOCK],
                self._reader.read(name, self._spec, slice(IMAGES - BLOCK, IMAGES)),
            ):
                if not np.array_equal(found, block):
                    raise ValueError(f"{self.way}: {name} does not come back as it was written")

    def bytes_per_pixel(self, kind: int) -> float:
        return (self._folder / IMAGE_NAMES[kind] / self._spec.part_path(0)).stat().st_size / self.pixels

    def crops(self, seed: int) -> float:
        """Per second: random windows of random pairs, blurred and sharp; the same ones for all ways of a seed."""
        rng = np.random.default_rng(seed)
        windows = []
        for image in rng.integers(0, IMAGES, 2 * CROPS).tolist():
            top, left = (int(rng.integers(0, side - SIDE + 1)) for side in self._shape(image))
            windows.append((image, slice(top, top + SIDE), slice(left, left + SIDE)))
        return self._rate(windows)

    def whole(self, seed: int) -> float:
        """Whole pairs per second."""
        images = np.random.default_rng(seed).integers(0, IMAGES, 2).tolist()
        return self._rate([(image, *(slice(0, side) for side in self._shape(image))) for image in images])

    def _shape(self, image: int) -> tuple[int, int]:
        return self._shapes[image % BLOCK % len(self._shapes)]

    def _rate(self, windows: list[Any]) -> float:
        """Pairs per second of the second half of some windows; the first half warms the processor's caches."""
        half = len(windows) // 2
        self._read(windows[:half])
        return half * rate(lambda: self._read(windows[half:]))

    def _read(self, windows: list[Any]) -> None:
        for window in windows:
            for name in IMAGE_NAMES:
                self._reader.read(name, self._spec, window)


def rate(work: Callable[[], Any], disturbed: float = DISTURBED) -> float:
    """Runs per second of processor time, NaN where another program had the core meanwhile."""
    start, start_processor = time.perf_counter(), time.process_time()
    work()
    seconds, processor = time.perf_counter() - start, time.process_time() - start_processor
    return 1 / processor if seconds < disturbed * processor else np.nan


class Png:
    """Files of whole images, which a crop decodes whole: for orientation only."""

    def __init__(self, name: str, files: Files) -> None:
        self.name, self._files = name, files
        self._pixels = sum(int(np.prod(cv2.imread(str(blurred)).shape[:2])) for blurred, _ in files)

    def bytes_per_pixel(self, kind: int) -> float:
        return sum(pair[kind].stat().st_size for pair in self._files) / self._pixels

    def whole(self, seed: int) -> float:
        files = self._files[seed % len(self._files)]
        return rate(lambda: [cv2.imread(str(file)) for file in files], np.inf)  # too long to be left alone

    crops = whole


def measure(pairs: list[Pair], files: Files | None, folder: Path) -> list[dict[str, Any]]:
    """One row per way; rates are medians over the turns, speeds are over that of the present way."""
    stored = [Stored(way, folder / str(number), pairs) for number, way in enumerate(WAYS)]
    writing = np.array([in_turns([one.write for one in stored], turn) for turn in range(WRITES)])
    for kept in stored:
        kept.check()
    pngs = [Png("PNG files", write_pngs(pairs, folder / "png"))]
    pngs += [Png("PNG files as they came", files)] if files else []
    everything: list[Stored | Png] = [*stored, *pngs]
    crops, whole = [], []
    for turn in range(TURNS):
        crops.append(in_turns([partial(one.crops, turn) for one in everything], turn))
        if turn < WHOLE_TURNS:
            whole.append(in_turns([partial(one.whole, turn) for one in everything], turn))
    crop_rates, whole_rates = (np.array(rates)[len(rates) // 8 :] for rates in (crops, whole))  # with full caches
    crop_rate, whole_rate = (np.nanmedian(rates, axis=0) for rates in (crop_rates, whole_rates))
    if np.isnan([crop_rate, whole_rate]).any():
        raise SystemExit("another program had the core all the time; try again when the machine has less to do")
    present = sum(stored[0].bytes_per_pixel(kind) for kind in range(2))
    rows = []
    for number, one in enumerate(everything):
        blurred, sharp = (one.bytes_per_pixel(kind) for kind in range(2))
        way = one.way if isinstance(one, Stored) else None  # a way of the store, or PNG files
        rows.append(
            {
                "codecs": one.way.name if isinstance(one, Stored) else one.name,
                "planes": bool(way and way.planar),
                "chunk": "x".join(map(str, way.chunk)) if way else "",
                "B/px blurred": round(blurred, 3),
                "B/px sharp": round(sharp, 3),
                "bytes": round((blurred + sharp) / present, 3),
                "write s/Mpx": round(float(np.median(writing[:, number])), 3) if way else None,
                "crops/s": round(float(crop_rate[number])),
                "speed": round(float(crop_rate[number] / crop_rate[0]), 2),
                "whole speed": round(float(whole_rate[number] / whole_rate[0]), 2),
                "crops/s quartiles": np.nanquantile(crop_rates[:, number], (0.25, 0.75)).round().tolist(),
                "reads that count": int(np.isfinite(crop_rates[:, number]).sum()),
            }
        )
    return rows


def in_turns(works: Sequence[Callable[[], float]], seed: int) -> list[float]:
    """What each gives, called in random order."""
    found = [0.0] * len(works)
    for number in np.random.default_rng(seed).permutation(len(works)).tolist():
        found[number] = works[number]()
    return found


def write_pngs(pairs: list[Pair], folder: Path) -> Files:
    folder.mkdir()
    files = [(folder / f"{number}-blurred.png", folder / f"{number}-sharp.png") for number in range(len(pairs))]
    for pair, paths in zip(pairs, files, strict=True):
        for image, path in zip(pair, paths, strict=True):
            Image.fromarray(image).save(path)
    return files


def sample_pairs() -> list[Pair]:
    """One pair: the middle 256 px of the first crop of each photograph with colours, four in a row."""
    tiles: dict[str, Pair] = {}
    for split in ("train", "test"):
        source = open_source("sample", split)
        for key in source.keys:
            pair, photograph = source.read(key), key.rpartition("-")[0]
            if photograph not in tiles and (pair.sharp[..., 0] != pair.sharp[..., 1]).any():
                tiles[photograph] = middle(pair.blurred), middle(pair.sharp)
    rows = [list(tiles.values())[start : start + 4] for start in range(0, len(tiles) // 4 * 4, 4)]
    blurred, sharp = (np.vstack([np.hstack([tile[kind] for tile in row]) for row in rows]) for kind in range(2))
    return [(blurred, sharp)]


def middle(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    top, left = ((side - SIDE) // 2 for side in image.shape[:2])
    return image[top : top + SIDE, left : left + SIDE]


def better(sets: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """On every set: a tenth of the bytes less without fewer crops/s, or 1.3x the crops/s without more bytes."""
    found = []
    for rows in zip(*(rows[: len(WAYS)] for rows in sets.values()), strict=True):
        bytes_, speeds = [row["bytes"] for row in rows], [row["speed"] for row in rows]
        saves = max(bytes_) <= 0.9 and min(speeds) >= 1
        faster = min(speeds) >= 1.3 and max(bytes_) <= 1
        if saves or faster:
            found.append({"way": label(rows[0]), "bytes": bytes_, "speed": speeds})
    return found


def label(row: dict[str, Any]) -> str:
    return ", ".join(part for part in ("planes" if row["planes"] else "", row["codecs"], row["chunk"]) if part)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=Path, help="a folder of pairs, such as blur/ and sharp/")
    options = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    cv2.setNumThreads(1)
    given: dict[str, tuple[list[Pair], Files | None]] = {}
    if options.pairs:
        source = open_source(str(options.pairs), "pairs", dataset="pairs")
        keys = source.keys[:BLOCK]
        read = [source.read(key) for key in keys]
        given["pairs"] = [(pair.blurred, pair.sharp) for pair in read], [source.files[key] for key in keys]
    given["sample"] = sample_pairs(), None
    sets: dict[str, list[dict[str, Any]]] = {}
    for name, (pairs, files) in given.items():
        with tempfile.TemporaryDirectory() as folder:
            sets[name] = measure(pairs, files, Path(folder))
        height, width = pairs[0][0].shape[:2]
        print(f"\n{name}: {len(pairs)} of {width}x{height}")
        columns = ("B/px blurred", "B/px sharp", "bytes", "write s/Mpx", "crops/s", "speed", "whole speed")
        print(f"  {'':48}" + "".join(f"{column:>14}" for column in columns))
        for number, row in enumerate(sets[name]):
            values = "".join(f"{'' if row[column] is None else row[column]:>14}" for column in columns)
            print(f"{'* ' if not number else '  '}{label(row):48}{values}")
    wins = better(sets)
    print("\nbetter than the present way on every set:")
    for win in wins:
        print(f"  {win['way']:48} bytes {win['bytes']}, speed {win['speed']}")
    out = RESULTS / "image_codecs.json"
    result = {"machine": f"{platform.machine()}, one core", "present": label(sets["sample"][0]), "better": wins}
    out.write_text(json.dumps(result | {"sets": sets}, indent=1) + "\n")


if __name__ == "__main__":
    main()

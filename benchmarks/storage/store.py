"""The store against the other ways of keeping overlapping masks: bytes, encoding, decoding, random crops, in one run.

python -m benchmarks.storage.store [--masks FOLDER]

The scenes are those of dense_masks.py. With --masks, also real model masks: a folder with `sav_000001_auto.json` (an
example of SA-V) and `coco_fakesegm100.json` (of cocoapi). Files lie in the page cache for all of them. Prints medians
and ratios, writes benchmarks/results/store.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import zarr
from numpy.typing import NDArray
from pycocotools import mask as coco
from zarr.codecs import ZstdCodec

from benchmarks.common.dense_masks import dense_masks, fake_records
from benchmarks.common.figures import RESULTS, size_of
from samdeblur.storage import AtomMap, open_store
from samdeblur.storage.access import readers
from samdeblur.storage.format.layout import Header
from samdeblur.storage.sharing.export import export_zip
from samdeblur.storage.writing.bulk import BLOCK_SIZE, Row, fill_store, key_bytes, new_extent
from samdeblur.storage.writing.commits import ImageContent, geometry_records

DENSE_SCENES = 16
CROPS = 30
SLOW_CROPS = 6
SIDE = 256

Masks = list[NDArray[np.bool_]]
Window = tuple[int, int, int, int]


class SamJson:
    """One JSON file per image as in SA-1B: COCO RLE and the records of Segment Anything."""

    name = "SA-1B JSON"

    def write(self, masks: Masks, records: dict[str, NDArray[np.float64]], path: Path) -> None:
        height, width = masks[0].shape
        annotations = []
        for number, mask in enumerate(masks):
            rle = coco.encode(np.asfortranarray(mask.view(np.uint8)))
            annotations.append(
                {
                    "bbox": coco.toBbox(rle).tolist(),
                    "area": int(coco.area(rle)),
                    "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
                    "predicted_iou": records["predicted_iou"][number],
                    "stability_score": records["stability_score"][number],
                    "point_coords": [[records["point_x"][number], records["point_y"][number]]],
                    "crop_box": [0, 0, width, height],
                    "id": number,
                }
            )
        image = {"image_id": 1, "width": width, "height": height, "file_name": f"{path.name}.jpg"}
        path.with_suffix(".json").write_text(json.dumps({"image": image, "annotations": annotations}))

    def read(self, path: Path) -> NDArray[np.bool_]:
        document = json.loads(path.with_suffix(".json").read_text())
        return coco.decode([a["segmentation"] for a in document["annotations"]]).astype(bool)

    def crop(self, path: Path, window: Window) -> NDArray[np.bool_]:
        return _crop_rle(json.loads(path.with_suffix(".json").read_text())["annotations"], window)


class ParsedJson(SamJson):
    """The same with every file parsed and kept in memory: only the RLE of masks whose box meets the crop is decoded."""

    name = "SA-1B JSON, parsed before"

    def __init__(self) -> None:
        self._parsed: dict[Path, Any] = {}

    def crop(self, path: Path, window: Window) -> NDArray[np.bool_]:
        if path not in self._parsed:
            self._parsed[path] = json.loads(path.with_suffix(".json").read_text())["annotations"]
        return _crop_rle(self._parsed[path], window)


def _crop_rle(annotations: list[Any], window: Window) -> NDArray[np.bool_]:
    top, left, height, width = window
    near = []
    for annotation in annotations:
        x, y, w, h = annotation["bbox"]
        if x < left + width and x + w > left and y < top + height and y + h > top:
            near.append(annotation["segmentation"])
    full = [coco.decode(rle)[top : top + height, left : left + width] for rle in near]
    return np.stack(full).astype(bool) if full else np.zeros((0, height, width), bool)


class GroupedNpz:
    """As the released SAM-Deblur keeps them: the groups of a grey image, in a compressed npz. Overlaps are lost."""

    name = "released npz (groups)"

    def write(self, masks: Masks, records: dict[str, NDArray[np.float64]], path: Path) -> None:
        grey = np.zeros(masks[0].shape, np.float32)
        for number, mask in enumerate(masks):
            grey += mask * np.float32(2 * (number + 1) if number < 127 else 2 * (255 - number) - 1)
        grey = grey.clip(0, 255).astype(np.uint8)
        groups = np.stack([grey == value for value in np.unique(grey)])[:, None]
        np.savez_compressed(path.with_suffix(".npz"), masks=groups)

    def read(self, path: Path) -> NDArray[np.bool_]:
        with np.load(path.with_suffix(".npz")) as file:
            return file["masks"][:, 0]

    def crop(self, path: Path, window: Window) -> NDArray[np.bool_]:
        top, left, height, width = window
        return self.read(path)[:, top : top + height, left : left + width]


class MaskPngs:
    """One 1-bit PNG per mask in a folder per image. The records are lost."""

    name = "PNG per mask"

    def write(self, masks: Masks, records: dict[str, NDArray[np.float64]], path: Path) -> None:
        path.with_suffix(".masks").mkdir()
        for number, mask in enumerate(masks):
            file = str(path.with_suffix(".masks") / f"{number:04}.png")
            cv2.imwrite(file, mask.view(np.uint8) * 255, [cv2.IMWRITE_PNG_BILEVEL, 1])

    def read(self, path: Path) -> NDArray[np.bool_]:
        files = sorted(path.with_suffix(".masks").iterdir())
        return np.stack([cv2.imread(str(file), cv2.IMREAD_GRAYSCALE) > 0 for file in files])

    def crop(self, path: Path, window: Window) -> NDArray[np.bool_]:
        top, left, height, width = window
        return self.read(path)[:, top : top + height, left : left + width]


class BooleanStack:
    """A Zarr array (M, H, W) of booleans with zstd, in chunks of all masks and 256 px. The records are lost."""

    name = "boolean stack, zstd"

    def write(self, masks: Masks, records: dict[str, NDArray[np.float64]], path: Path) -> None:
        stack = np.stack(masks)
        zarr.create_array(
            path.with_suffix(".zarr"), data=stack, chunks=(len(masks), SIDE, SIDE), compressors=[ZstdCodec(level=3)]
        )

    def read(self, path: Path) -> NDArray[np.bool_]:
        return np.asarray(zarr.open_array(path.with_suffix(".zarr"), mode="r")[:])

    def crop(self, path: Path, window: Window) -> NDArray[np.bool_]:
        top, left, height, width = window
        array = zarr.open_array(path.with_suffix(".zarr"), mode="r")
        return np.asarray(array[:, top : top + height, left : left + width])


def measure(scenes: list[Masks], folder: Path) -> list[dict[str, Any]]:
    """One row per way, those of the store first; ratios are over the first."""
    rng = np.random.default_rng(0)
    records = [fake_records(rng, masks) for masks in scenes]
    windows = [[random_window(rng, masks[0].shape) for _ in range(CROPS)] for masks in scenes]
    rows = measure_store(scenes, records, windows, folder / "store.zarr")
    for way in (SamJson(), ParsedJson(), GroupedNpz(), MaskPngs(), BooleanStack()):
        rows.append(measure_way(way, scenes, records, windows, folder / type(way).__name__))
    for other in rows:
        other["bytes over ours"] = round(other["bytes per image"] / rows[0]["bytes per image"], 2)
        other["crop over ours"] = round(other["crop ms"] / rows[0]["crop ms"], 1)
    return rows


def measure_way(
    way: Any, scenes: list[Masks], records: list[Any], windows: list[list[Window]], place: Path
) -> dict[str, Any]:
    place.mkdir()
    paths = [place / f"{number:04}" for number in range(len(scenes))]
    encode = [timed(way.write, *item) for item in zip(scenes, records, paths, strict=True)]
    decode = [timed(way.read, path) for path in paths]
    crops = []
    for path, some in zip(paths, windows, strict=True):
        if isinstance(way, ParsedJson):
            way.crop(path, some[0])
        crops += [timed(way.crop, path, window) for window in some[:SLOW_CROPS]]
    return row(way.name, size_of(place) / len(scenes), encode, decode, crops)


def measure_store(
    scenes: list[Masks], records: list[Any], windows: list[list[Window]], path: Path
) -> list[dict[str, Any]]:
    """The store as the package writes it, flushed to the disk, and its crops in several manners."""
    atoms_seconds: list[float] = []

    def content(number: int) -> Row:
        start = time.perf_counter()
        atoms = AtomMap.from_masks(scenes[number])
        found = Row.done(ImageContent(atoms, records[number] | geometry_records(atoms)))
        atoms_seconds.append(time.perf_counter() - start)
        return found

    shapes = np.array([masks[0].shape for masks in scenes], np.int32)
    keys = [f"{number:04}" for number in range(len(scenes))]
    extent = new_extent(shapes)
    header = Header("dense", "test", {}, "none", len(keys), extent, key_bytes(keys), BLOCK_SIZE, images=False)
    written = timed(fill_store, path, header, keys, shapes, content) - sum(atoms_seconds)
    encode = [seconds + written / len(scenes) for seconds in atoms_seconds]
    store = open_store(path)
    for key, masks in zip(keys, scenes, strict=True):
        assert np.array_equal(store.atoms(key).to_masks(), np.stack(masks))
    size = size_of(path) / len(scenes)
    decode = [timed(lambda key: store.atoms(key).to_masks(), key) for key in keys]
    pairs = [(key, window) for key, some in zip(keys, windows, strict=True) for window in some]
    first = row("store", size, encode, decode, [timed(store.atoms, *pair) for pair in pairs])
    first |= {
        "bytes by array": {name: round(size_of(path / name) / len(store)) for name in ("atoms", "pairs", "records")},
        "masks": round(statistics.mean(len(masks) for masks in scenes)),
        "atoms": round(float(store.counts[:, 1].mean())),
        "pairs": round(float(store.counts[:, 2].mean())),
    }
    dense = [timed(lambda *pair: store.atoms(*pair).to_masks(), *pair) for pair in pairs]
    readers.CACHE_BYTES = 1 << 20  # the indices of the shards, and hardly a chunk
    cold = open_store(path)
    for pair in pairs:
        cold.atoms(*pair)
    uncached = [timed(cold.atoms, *pair) for pair in pairs]
    readers.CACHE_BYTES = 64 << 20
    export_zip(path, path.with_name("store.zip"))
    shared = open_store(path.with_name("store.zip"))
    zip_size = path.with_name("store.zip").stat().st_size / len(scenes)
    return [
        first,
        row("store, crops as dense masks", size, encode, decode, dense),
        row("store, no chunk kept", size, encode, decode, uncached),
        row("store, exported as a zip", zip_size, encode, decode, [timed(shared.atoms, *pair) for pair in pairs]),
    ]


def random_window(rng: np.random.Generator, shape: tuple[int, int]) -> Window:
    top, left = (int(rng.integers(0, max(1, side - SIDE + 1))) for side in shape)
    return top, left, min(SIDE, shape[0]), min(SIDE, shape[1])


def row(name: str, size: float, encode: list[float], decode: list[float], crops: list[float]) -> dict[str, Any]:
    return {
        "way": name,
        "bytes per image": round(size),
        "encode ms": ms(encode),
        "decode ms": ms(decode),
        "crop ms": ms(crops),
    }


def ms(seconds: list[float]) -> float:
    return round(1e3 * statistics.median(seconds), 3)


def timed(work: Callable[..., Any], *arguments: Any) -> float:
    start = time.perf_counter()
    work(*arguments)
    return time.perf_counter() - start


def real_scenes(folder: Path) -> Iterator[tuple[str, list[Masks]]]:
    sav = json.loads((folder / "sav_000001_auto.json").read_text())["masklet"]
    yield "SA-V example, 848x480, 9 objects", [[coco.decode(rle).astype(bool) for rle in frame] for frame in sav]
    images = defaultdict(list)
    for annotation in json.loads((folder / "coco_fakesegm100.json").read_text()):
        images[annotation["image_id"]].append(coco.decode(annotation["segmentation"]).astype(bool))
    yield "COCO, 99 images, 7 masks each", list(images.values())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--masks", type=Path)
    options = parser.parse_args()
    cv2.setNumThreads(1)
    sets = [("dense scenes, 1280x720", [dense_masks(seed) for seed in range(DENSE_SCENES)])]
    if options.masks:
        sets += list(real_scenes(options.masks))
    results: dict[str, Any] = {}
    for name, scenes in sets:
        with tempfile.TemporaryDirectory() as folder:
            results[name] = measure(scenes, Path(folder))
        first = results[name][0]
        print(
            f"\n{name}: {len(scenes)} images, {first['masks']} masks in {first['atoms']} atoms, {first['pairs']} pairs"
        )
        columns = ("bytes per image", "bytes over ours", "encode ms", "decode ms", "crop ms", "crop over ours")
        print(f"{'':28}" + "".join(f"{column:>17}" for column in columns))
        for found in results[name]:
            print(f"{found['way']:28}" + "".join(f"{found[column]:>17}" for column in columns))
        print(f"store, bytes per image by array: {first['bytes by array']}")
    out = RESULTS / "store.json"
    out.write_text(json.dumps({"machine": f"{platform.machine()}, one core", "sets": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()

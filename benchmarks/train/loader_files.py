"""The files that loader.py reads: the same images and masks as stores, and as the released recipe keeps them.

python -m benchmarks.train.loader_files FOLDER [--pairs FOLDER]     # write them ahead, for loader.py --data FOLDER
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import skimage
from numpy.typing import NDArray

from benchmarks.common.dense_masks import dense_masks, fake_records
from benchmarks.common.figures import size_of
from samdeblur.pipeline import open_source
from samdeblur.pipeline.sources.camera import Sensor, decode, random_path
from samdeblur.storage import AtomMap
from samdeblur.storage.format.layout import Header, pixel_digest
from samdeblur.storage.sharing.export import export_hdf5, export_zip
from samdeblur.storage.writing.bulk import BLOCK_SIZE, Row, fill_store, key_bytes, new_extent
from samdeblur.storage.writing.commits import ImageContent, geometry_records
from samdeblur.train.data.crops import orient

HEIGHT, WIDTH = 720, 1280
PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket", "hubble_deep_field", "retina", "motorcycle", "ihc")
SCENES = 8
DISTINCT = 24  # images with masks
COPIES = 4  # of each in the store
TILE, STEP = 512, 256  # of the released recipe
OURS, THEIRS = "store", "released recipe"


class Content(NamedTuple):
    """An image: its sides, (H, W, 3) uint8 RGB, and its masks."""

    blurred: NDArray[np.uint8]
    sharp: NDArray[np.uint8]
    atoms: AtomMap


def photographs() -> list[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    """Blurred and sharp, covering 1280x720."""
    pairs = []
    for seed, name in enumerate(PHOTOGRAPHS):
        if name == "motorcycle":
            photo = skimage.data.stereo_motorcycle()[0]
        else:
            photo = getattr(skimage.data, {"ihc": "immunohistochemistry"}.get(name, name))()
        scale = max(HEIGHT / photo.shape[0], WIDTH / photo.shape[1])
        method = cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA
        sharp = cv2.resize(photo, None, fx=scale, fy=scale, interpolation=method)
        top, left = (sharp.shape[0] - HEIGHT) // 2, (sharp.shape[1] - WIDTH) // 2
        sharp = np.ascontiguousarray(sharp[top : top + HEIGHT, left : left + WIDTH])
        pairs.append((shaken(sharp, seed), sharp))
    return pairs


def shaken(sharp: NDArray[np.uint8], seed: int) -> NDArray[np.uint8]:
    """A photograph taken by a moving camera: the mean of linear light along a path, and the noise of a sensor."""
    rng = np.random.default_rng(seed)
    path = np.round(random_path(rng, rng.uniform(10, 30), 65)).astype(int)
    kernel = np.zeros((81, 81), np.float32)
    np.add.at(kernel, (40 + path[:, 1], 40 + path[:, 0]), 1 / len(path))
    return Sensor().expose(cv2.filter2D(decode(sharp), -1, kernel), rng)


def pairs_of(folder: Path) -> list[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    source = open_source(str(folder), "train", "pairs")
    read = [source.read(key) for key in source.keys[:DISTINCT]]
    if any(pair.blurred.shape != (HEIGHT, WIDTH, 3) for pair in read):
        raise SystemExit(f"{folder}: give images of {WIDTH}x{HEIGHT}")
    return [(pair.blurred, pair.sharp) for pair in read]


def scene(seed: int) -> tuple[AtomMap, AtomMap]:
    """All masks of a scene, and every fourth of them."""
    masks = dense_masks(seed, HEIGHT, WIDTH)
    return AtomMap.from_masks(masks), AtomMap.from_masks(masks[::4])


def contents_of(pairs: Sequence[tuple[NDArray[np.uint8], NDArray[np.uint8]]], scenes: list[AtomMap]) -> list[Content]:
    """The 24: pairs pushed around their edges, scenes flipped."""
    rng = np.random.default_rng(0)
    found = []
    for number in range(DISTINCT):
        pair, masks = pairs[number % len(pairs)], scenes[number % len(scenes)]
        shift = (int(rng.integers(HEIGHT)), int(rng.integers(WIDTH)))
        blurred, sharp = (np.roll(image, shift, (0, 1)) for image in pair)
        plane = orient(masks.atoms, number // len(scenes))
        flipped = AtomMap(plane, masks.pairs, masks.mask_ids).crop(0, 0, *plane.shape)  # numbered as the format wants
        found.append(Content(blurred, sharp, flipped))
    return found


def write_store(path: Path, contents: list[Content], copies: int) -> None:
    rng = np.random.default_rng(0)
    rows = []
    for content in contents:
        records = fake_records(rng, [content.blurred[..., 0]] * content.atoms.n_masks)
        image = ImageContent(content.atoms, records | geometry_records(content.atoms), content.blurred, content.sharp)
        rows.append(Row.done(image, pixel_digest(content.blurred)))
    keys = [f"{number:06}" for number in range(len(contents) * copies)]
    shapes = np.array([content.atoms.shape for content in contents] * copies, np.int32)
    header = Header(
        "loader", "train", {}, "pixels", len(keys), new_extent(shapes), key_bytes(keys), BLOCK_SIZE, images=True
    )
    store = fill_store(path, header, keys, shapes, lambda number: rows[number % len(rows)])
    for key, content in zip(keys, contents, strict=False):
        assert store.atoms(key) == content.atoms
        assert all(np.array_equal(store.image(name, key), getattr(content, name)) for name in ("blurred", "sharp"))


def write_images(folder: Path, contents: list[Content], copies: int) -> None:
    """Whole images as PNG files; copies are links."""
    for name, kind in (("blur", "blurred"), ("sharp", "sharp")):
        (folder / name).mkdir(parents=True)
        for number, content in enumerate(contents):
            file = folder / name / f"{number:06}.png"
            write_png(file, getattr(content, kind))
            for copy in range(1, copies):
                os.link(file, folder / name / f"{number + copy * len(contents):06}.png")


def write_png(file: Path, image: NDArray[np.uint8]) -> None:
    cv2.imwrite(str(file), image[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 3])


def grey_sum(atoms: AtomMap) -> NDArray[np.uint8]:
    """(H, W): the sum of a code for each mask over a pixel, within 0..255, as the released masks were made."""
    number = np.arange(atoms.n_masks)
    codes = np.where(number < 127, 2 * (number + 1), 2 * (255 - number) - 1)
    sums = np.bincount(atoms.pairs[:, 0], codes[atoms.pairs[:, 1]], atoms.n_atoms + 1)
    return sums.clip(0, 255).astype(np.uint8)[atoms.atoms]


def tile_corners(shape: tuple[int, int]) -> list[tuple[int, int]]:
    starts = [[*range(0, side - TILE, STEP), side - TILE] for side in shape]
    return list(itertools.product(*starts))


def write_released(folder: Path, number: int, content: Content) -> list[int]:
    """The files of one image; returns the groups of each npz."""
    grey, groups = grey_sum(content.atoms), []
    for crop, (top, left) in enumerate(tile_corners(content.atoms.shape)):
        window, name = np.s_[top : top + TILE, left : left + TILE], f"{number:06}-s{crop:03}"
        for kind in ("blurred", "sharp"):
            write_png(folder / kind / f"{name}.png", getattr(content, kind)[window])
        masks = np.stack([grey[window] == value for value in np.unique(grey[window])])[:, None]
        np.savez_compressed(folder / "masks" / f"{name}.npz", masks=masks)
        groups.append(len(masks))
    return groups


def prepare(folder: Path, pairs: list[Any], scenes: list[AtomMap], everything: bool, pool: ProcessPoolExecutor) -> None:
    """Write all files of a set, and what there is to say of them."""
    contents = contents_of(pairs, scenes)
    for name in ("blurred", "sharp", "masks"):
        (folder / "released" / name).mkdir(parents=True)
    writing = [pool.submit(write_released, folder / "released", *item) for item in enumerate(contents)]
    write_store(folder / "store.zarr", contents, COPIES)
    groups = [number for task in writing for number in task.result()]
    if everything:
        write_images(folder / "images", contents, COPIES)
        write_store(folder / "small.zarr", contents, 1)
        export_zip(folder / "small.zarr", folder / "small.zip", images=True)
        export_hdf5(folder / "small.zarr", folder / "small.h5", images=True)
    masks = [content.atoms.n_masks for content in contents]
    facts = {
        "images": DISTINCT,
        "images in the store": DISTINCT * COPIES,
        "masks per image": {"mean": round(statistics.mean(masks), 1), "least": min(masks), "most": max(masks)},
        "atoms per image": round(statistics.mean(content.atoms.n_atoms for content in contents)),
        "groups per npz": {"mean": round(statistics.mean(groups), 1), "least": min(groups), "most": max(groups)},
        "npz per image": len(groups) // DISTINCT,
        "bytes per image": bytes_per_image(folder),
    }
    (folder / "facts.json").write_text(json.dumps(facts))


def bytes_per_image(folder: Path) -> dict[str, dict[str, int]]:
    """Everything included; of the whole PNG files with the masks of the store."""

    def of(sizes: dict[str, int], count: int) -> dict[str, int]:
        sizes["all"] = sum(sizes.values())
        return {name: round(size / count) for name, size in sizes.items()}

    store, released = folder / "store.zarr", folder / "released"
    images_size = size_of(store / "images")
    rest = size_of(store) - images_size
    found = {
        OURS: of({"images": images_size, "masks and index": rest}, DISTINCT * COPIES),
        THEIRS: of(
            {
                "images": size_of(released / "blurred") + size_of(released / "sharp"),
                "masks": size_of(released / "masks"),
            },
            DISTINCT,
        ),
    }
    if (folder / "images").exists():
        files = size_of(folder / "images") // COPIES
        found["PNG folder"] = of({"images": files, "masks and index": rest // COPIES}, DISTINCT)
        for name in ("zip", "h5"):
            found[name] = of({"images and masks": (folder / f"small.{name}").stat().st_size}, DISTINCT)
    return found


def write_sets(root: Path, pairs: Path | None) -> list[str]:
    """The files of every set that are not there yet; names of the sets, the one with everything first."""
    sets = {"photographs, dense masks": (None, 0), "photographs, every fourth mask": (None, 1)}
    if pairs:
        sets["pairs of a folder, dense masks"] = (pairs, 0)
    missing = [name for name in sets if not (root / name / "facts.json").exists()]
    if missing:
        with ProcessPoolExecutor(os.cpu_count(), get_context("forkserver")) as pool:
            scenes = list(zip(*pool.map(scene, range(SCENES)), strict=True))
            for name in missing:
                source, which = sets[name]
                given = pairs_of(source) if source else photographs()
                prepare(root / name, given, list(scenes[which]), name == next(iter(sets)), pool)
    return list(sets)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--pairs", type=Path, help="a folder of pairs, blur/ and sharp/, of 1280x720")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    if options.folder:
        print("\n".join(write_sets(options.folder, options.pairs)))

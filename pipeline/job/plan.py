"""What is to be done: a store for a source, new or begun, the blocks that are missing, and what they will take."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from samdeblur.pipeline.job.blocks import BlockTask
from samdeblur.pipeline.job.embeddings import require_embeddings
from samdeblur.pipeline.job.recipe import PrepSettings, Stages, check_runs
from samdeblur.pipeline.segmenters.kept import shapes_of
from samdeblur.pipeline.segmenters.sam import SamSegmenter
from samdeblur.pipeline.sources.base import BadImage, Source
from samdeblur.storage import StoreError, open_store
from samdeblur.storage.access.header import read_header
from samdeblur.storage.format.layout import DONE, PENDING, QUARANTINED, Header, round_up
from samdeblur.storage.names import nfc
from samdeblur.storage.plurals import counted
from samdeblur.storage.sharing.info import stored_bytes
from samdeblur.storage.writing.bulk import fitting, new_extent
from samdeblur.storage.writing.commits import Committer, run_folder
from samdeblur.storage.writing.compare import SINCE, recipe_differences
from samdeblur.storage.writing.creation import create_store, is_vacant

BLOCK_SIZE = 8
BLOCK_LOG = "blocks.jsonl"  # in the run folder: a line for each block that was committed
HEADERS_AT_ONCE = 16  # files opened for their size; a network file system answers each of them late

# Bytes per pixel where a store has none to measure yet: docs/scaling.md and docs/image-codecs.md.
MASK_BYTES_PER_PIXEL = 0.075  # dense masks, 213 at 720p
IMAGE_BYTES_PER_PIXEL = 3.5  # blurred and sharp together


@dataclass(frozen=True)
class StoreOptions:
    """How a new store is laid out; a store that exists keeps its own block size.

    Attributes:
        embeddings: keep what the encoder of Segment Anything made of each image and its crops.
    """

    images: bool = True
    block_size: int | None = None
    embeddings: bool = False


@dataclass(frozen=True)
class Plan:
    """What a run would do; nothing is written to find it out.

    Attributes:
        unreadable: key -> why the size of an image that is still to be done cannot be read.
        bytes_per_image, seconds_per_image: of one worker; measured in this store when `measured`, else the bytes
            are an estimate and the seconds unknown.
    """

    images: int
    blocks: int
    pending_images: int
    pending_blocks: int
    quarantined: int
    unreadable: Mapping[str, str]
    measured: bool
    bytes_per_image: float
    seconds_per_image: float | None


def ensure_store(source: Source, path: Path, settings: PrepSettings, options: StoreOptions, here: bool = True) -> bool:
    """Create the store when there is none; whether it was.

    Args:
        here: whether the work is done on this machine, whose devices are looked for then.

    Raises:
        StoreError: a share is there.
        CheckpointError: weights that cannot be used; no store is made for them.
        OSError: the folder cannot be written.
    """
    if path.is_file():
        raise StoreError(f"{path}: an exported store, which is read-only; give a folder to write the store to")
    if not is_vacant(path):
        return False
    stages = check_runs(settings, here)
    shapes, _ = image_shapes(source)
    shapes[~fitting(shapes)] = 0  # quarantined when they are read
    header = new_header(source, settings, options, shapes)
    try:
        create_store(path, _keeping(header, stages) if options.embeddings else header, source.keys, shapes)
    except FileExistsError:  # another job has just made one
        return False
    return True


def check_same(source: Source, path: Path, settings: PrepSettings, options: StoreOptions) -> None:
    """Raise StoreError unless the store at a path is of this source, recipe and layout, naming what differs."""
    header = read_header(path)
    differences = recipe_differences(header.recipe, settings.recipe(), SINCE)
    if differences:
        raise StoreError(f"{path}: made by another recipe ({'; '.join(differences)}); write to a new store")
    layout = {
        "dataset": (header.dataset, source.dataset),
        "split": (header.split, source.split),
        "with images": (header.images, options.images),
        "with embeddings": (bool(header.embeddings), options.embeddings),
        "block size": (header.block_size, options.block_size or header.block_size),
    }
    for name, (stored, asked) in layout.items():
        if stored != asked:
            raise StoreError(f"{path}: {name} is {stored} in the store, {asked} was asked for; write to a new store")
    stored, keys = list(map(nfc, open_store(path).keys)), list(map(nfc, source.keys))
    if stored != keys:
        example = next((key for key in sorted({*stored} ^ {*keys})), "their order")
        raise StoreError(
            f"{path}: lists {counted(len(stored), 'image')}, the source {len(keys)} (first difference: {example}); "
            "write to a new store"
        )


def new_header(source: Source, settings: PrepSettings, options: StoreOptions, shapes: NDArray[np.int32]) -> Header:
    return Header(
        dataset=source.dataset,
        split=source.split,
        recipe=settings.recipe(),
        digest=source.digest,
        n_images=len(source.keys),
        extent=new_extent(shapes),
        key_bytes=round_up(max(len(key.encode()) for key in source.keys), 16),
        block_size=options.block_size or BLOCK_SIZE,
        images=options.images,
    )


def _keeping(header: Header, stages: Stages) -> Header:
    """With arrays for what this encoder gives."""
    assert isinstance(stages.segmenter, SamSegmenter)
    return replace(header, embeddings=shapes_of(stages.segmenter))


def image_shapes(source: Source, keys: Sequence[str] | None = None) -> tuple[NDArray[np.int32], dict[str, str]]:
    """(I, 2) height and width of images, 0 0 where they cannot be read, and key -> why of those.

    Raises SourceLost.
    """
    keys = source.keys if keys is None else keys
    shapes, unreadable = np.zeros((len(keys), 2), np.int32), {}

    def look(key: str) -> tuple[int, int] | BadImage:
        try:
            return source.shape(key)
        except BadImage as error:
            return error

    with ThreadPoolExecutor(HEADERS_AT_ONCE, "shapes") as pool:
        for row, key, found in zip(shapes, keys, pool.map(look, keys, chunksize=64), strict=True):
            if isinstance(found, BadImage):
                unreadable[key] = str(found)
            else:
                row[:] = found
    return shapes, unreadable


def retry_quarantined(source: Source, committer: Committer, path: Path) -> int:
    """Make the blocks of quarantined images pending again, with the sizes the images have now; how many images."""
    store = open_store(path)
    rows = np.flatnonzero(store.states == QUARANTINED).tolist()
    if rows:
        committer.reopen(rows, image_shapes(source, [store.keys[row] for row in rows])[0])
    return len(rows)


def make_plan(source: Source, path: Path, settings: PrepSettings, options: StoreOptions, retry: bool = False) -> Plan:
    """What `prepare` would do. Raises as it does, and writes nothing."""
    if settings.embeddings is not None:
        require_embeddings(source, settings)
    if path.is_file():
        raise StoreError(f"{path}: an exported store, which is read-only; give a folder to write the store to")
    keys, done = source.keys, 0
    stored: dict[str, int] | None = None
    if is_vacant(path):
        shapes, unreadable = image_shapes(source)
        header = new_header(source, settings, options, shapes)
        if options.embeddings:
            header = _keeping(header, check_runs(settings, here=False))
        states = np.zeros(len(keys), np.uint8)
    else:
        check_same(source, path, settings, options)
        store = open_store(path)
        header, states, shapes = store.header, store.states, store.shapes
        stored, done = stored_bytes(store), int((states == DONE).sum())
    todo = rows_to_do(states, retry)
    if stored is not None:
        unreadable = image_shapes(source, [keys[row] for row in todo])[1]
    blocks = {row // header.block_size for row in todo}
    pixels = float(shapes.prod(axis=1, dtype=np.int64).mean())
    estimate = pixels * (MASK_BYTES_PER_PIXEL + IMAGE_BYTES_PER_PIXEL * header.images)
    estimate += sum(2 * math.prod(features) for features in header.embeddings)  # before compression
    return Plan(
        images=len(keys),
        blocks=header.n_blocks,
        pending_images=sum(len(header.block_range(block)) for block in blocks),
        pending_blocks=len(blocks),
        quarantined=int((states == QUARANTINED).sum()),
        unreadable=unreadable,
        measured=done > 0,
        bytes_per_image=stored["all"] / done if stored and done else estimate,
        seconds_per_image=measured_seconds(path),
    )


def rows_to_do(states: NDArray[np.uint8], retry: bool) -> list[int]:
    """Positions of images that are pending, and with `retry` of those in quarantine."""
    return np.flatnonzero((states == PENDING) | (retry & (states == QUARANTINED))).tolist()


def images_to_do(path: Path, retry: bool = False) -> int:
    """How many images a run on the store at a path will do: all of each block with one that is to be done."""
    store = open_store(path)
    blocks = {row // store.header.block_size for row in rows_to_do(store.states, retry)}
    return sum(len(store.header.block_range(block)) for block in blocks)


def measured_seconds(path: Path) -> float | None:
    """Seconds of one worker per image, over the blocks done so far; None before the first."""
    seconds = images = 0
    try:
        with open(run_folder(path) / BLOCK_LOG) as log:
            for line in log:
                row = json.loads(line)
                seconds += row["wall"] - row["seconds"].get("load", 0)
                images += row["images"]
    except (OSError, ValueError, KeyError):
        pass
    return seconds / images if images else None


def block_tasks(
    source: Source, path: Path, committer: Committer, blocks: list[int], settings: PrepSettings
) -> Iterator[BlockTask]:
    """Tasks for blocks, made when they are asked for."""
    keys, shapes = list(source.keys), open_store(path).shapes
    for block in blocks:
        images = committer.header.block_range(block)
        yield BlockTask(
            store=str(path.resolve()),
            header=committer.header,
            block=block,
            staging=str(committer.staging(block).resolve()),
            source=source.subset(keys[images.start : images.stop]),
            shapes=tuple((int(h), int(w)) for h, w in shapes[images.start : images.stop]),
            settings=settings,
        )

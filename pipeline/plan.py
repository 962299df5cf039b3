"""What is to be done: a store for a source, new or begun, and the blocks that are missing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from samdeblur.pipeline.recipe import PrepSettings, check_runs
from samdeblur.pipeline.sources import BadImage, Source
from samdeblur.pipeline.worker import BlockTask
from samdeblur.storage import StoreError, open_store
from samdeblur.storage.commits import Committer
from samdeblur.storage.compare import recipe_differences
from samdeblur.storage.header import read_header
from samdeblur.storage.layout import Header, create_store, round_up

BLOCK_SIZE = 8


@dataclass(frozen=True)
class StoreOptions:
    """How a new store is laid out; a store that exists keeps its own block size."""

    images: bool = True
    block_size: int | None = None


def ensure_store(source: Source, path: Path, settings: PrepSettings, options: StoreOptions) -> Header:
    """Create the store, or check that the one there is of this source and recipe.

    Raises:
        StoreError: a store of other images, another recipe or another layout, naming what differs.
        CheckpointError: weights that cannot be used; no store is made for them.
        OSError: the folder cannot be written.
    """
    if not path.exists():
        check_runs(settings)
        header = new_header(source, settings, options)
        shapes = image_shapes(source)
        height, width = (round_up(int(side)) for side in shapes.max(axis=0))
        header = replace(header, extent=(height, width))
        create_store(path, header, source.keys, shapes)
        return header
    header = read_header(path)
    if path.is_file():
        raise StoreError(f"{path}: a share, which is only read; prepare into a folder")
    differences = recipe_differences(header.recipe, settings.recipe())
    if differences:
        raise StoreError(f"{path}: made by another recipe ({'; '.join(differences)}); write to a new store")
    layout = {
        "dataset": (header.dataset, source.dataset),
        "split": (header.split, source.split),
        "images": (header.images, options.images),
        "block size": (header.block_size, options.block_size or header.block_size),
    }
    for name, (stored, asked) in layout.items():
        if stored != asked:
            raise StoreError(f"{path}: {name} is {stored} in the store, {asked} was asked for; write to a new store")
    stored, keys = open_store(path).keys, list(source.keys)
    if stored != keys:
        example = next((key for key in sorted({*stored} ^ {*keys})), "their order")
        raise StoreError(
            f"{path}: lists {len(stored)} images, the source {len(keys)} (first difference: {example}); "
            "write to a new store"
        )
    return header


def new_header(source: Source, settings: PrepSettings, options: StoreOptions) -> Header:
    return Header(
        dataset=source.dataset,
        split=source.split,
        recipe=settings.recipe(),
        digest=source.digest,
        n_images=len(source.keys),
        extent=(0, 0),
        key_bytes=round_up(max(len(key.encode()) for key in source.keys), 16),
        block_size=options.block_size or BLOCK_SIZE,
        images=options.images,
    )


def image_shapes(source: Source) -> NDArray[np.int32]:
    """(I, 2) height and width; 0 0 for an image that cannot be opened, which will be quarantined."""
    shapes = np.zeros((len(source.keys), 2), np.int32)
    for row, key in zip(shapes, source.keys, strict=True):
        try:
            row[:] = source.shape(key)
        except BadImage:
            continue
    return shapes


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

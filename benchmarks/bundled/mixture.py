"""A store of images of several sources and stores, without masks: what the bundled NAFNet learns from.

python -m benchmarks.bundled.mixture OUT.zarr worlds.zarr wide.zarr sample-wide      # run again, it goes on
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np

from samdeblur.pipeline import open_source
from samdeblur.storage import AtomMap, open_store
from samdeblur.storage.format.layout import Header
from samdeblur.storage.writing.bulk import BLOCK_SIZE, Row, fill_store, key_bytes, new_extent
from samdeblur.storage.writing.commits import ImageContent


class Part(NamedTuple):
    """Images of one place: names, heights and widths, and a function from a name to (blurred, sharp)."""

    keys: Sequence[str]
    shapes: Sequence[tuple[int, int]]
    read: Callable[[str], tuple[np.ndarray, np.ndarray]]


def part(location: str) -> Part:
    """The training images of a store, those that are done, or of a source."""
    if Path(location).is_dir():
        store = open_store(location)
        keys = store.ready_keys
        return Part(
            keys, [store.shape(k) for k in keys], lambda k: (store.image("blurred", k), store.image("sharp", k))
        )
    source = open_source(location, "train")

    def read(key: str) -> tuple[np.ndarray, np.ndarray]:
        pair = source.read(key)
        return pair.blurred, pair.sharp

    return Part(source.keys, [source.shape(key) for key in source.keys], read)


@click.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.argument("locations", nargs=-1, required=True)
@click.option("--most", default=0, help="At most so many images of each.")
@click.option("--sharp-every", default=12, show_default=True, help="One in so many is sharp in both.")
def main(out: Path, locations: tuple[str, ...], most: int, sharp_every: int) -> None:
    """Write OUT."""
    rows = []
    for location in locations:
        some = part(location)
        name = Path(location).stem
        for key, shape in list(zip(some.keys, some.shapes, strict=True))[: most or None]:
            rows.append((f"{name}/{key}", shape, key, some.read))

    def row(number: int) -> Row:
        _, shape, key, read = rows[number]
        blurred, sharp = read(key)
        if number % sharp_every == sharp_every - 1:
            blurred = sharp
        nothing = AtomMap.from_masks(np.zeros((0, *shape), bool))
        return Row.done(ImageContent(nothing, {}, np.ascontiguousarray(blurred), np.ascontiguousarray(sharp)))

    keys, shapes = [name for name, *_ in rows], np.array([shape for _, shape, *_ in rows], np.int32)
    recipe = {"segmenter": {"name": "none: images only"}, "sources": list(locations)}
    header = Header(
        "mixture", "train", recipe, "pixels", len(keys), new_extent(shapes), key_bytes(keys), BLOCK_SIZE, images=True
    )
    with click.progressbar(length=len(keys)) as bar:
        fill_store(out, header, keys, shapes, row, bar.update)


if __name__ == "__main__":
    main()

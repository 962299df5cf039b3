"""Stores made of stores: a part of one, several partial ones as one, or one with new images at its end. Embeddings are
left behind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from samdeblur.storage.format.layout import DONE, PENDING, QUARANTINED, StoreError
from samdeblur.storage.names import nfc, shared_names
from samdeblur.storage.plurals import counted
from samdeblur.storage.store import MaskStore
from samdeblur.storage.writing.bulk import Row, fill_store, key_bytes, new_extent
from samdeblur.storage.writing.commits import ImageContent, ImageOutcome
from samdeblur.storage.writing.compare import recipe_differences

Progress = Callable[[int], None]
Part = tuple[MaskStore, int]  # a store and a position in it


def subset(store: MaskStore, target: Path, keys: Sequence[str], progress: Progress = lambda images: None) -> MaskStore:
    """A store of some images of another, in that store's order.

    Raises:
        UnknownImage: a key the store does not have.
        StoreError: no keys, or another store is there.
    """
    return _write([(store, position) for position in sorted({store.position(key) for key in keys})], target, progress)


def merge(stores: Sequence[MaskStore], target: Path, progress: Progress = lambda images: None) -> MaskStore:
    """Several partial stores of one dataset and recipe as one, its images sorted by name.

    Of an image in several stores the first that is done counts, else the first that is quarantined.

    Raises:
        StoreError: stores that do not belong together, or differ in an image, naming what differs.
    """
    first = stores[0]
    for other in stores[1:]:
        _require_kinship(first, other, ("dataset", "split"))
    found: dict[str, Part] = {}
    for store, names in zip(stores, shared_names(store.keys for store in stores), strict=True):
        for position, own in enumerate(store.keys):
            key = names[own]
            there = found.get(key)
            if there is None:
                found[key] = store, position
                continue
            _require_same_image(key, there, (store, position))
            rank = {DONE: 0, QUARANTINED: 1, PENDING: 2}
            if rank[int(store.states[position])] < rank[int(there[0].states[there[1]])]:
                found[key] = store, position
    return _write([found[key] for key in sorted(found)], target, progress)


def append(store: MaskStore, more: MaskStore, target: Path, progress: Progress = lambda images: None) -> MaskStore:
    """The images of a store, then those of another with the same recipe; names and split are those of the first.

    Raises:
        StoreError: another recipe, an image in both, or another store is there.
    """
    _require_kinship(store, more)
    twice = [key for key in more.keys if key in store]
    if twice:
        raise StoreError(
            f"{more.path}: {counted(len(twice), 'image')} of it in {store.path} already, such as {min(twice)}; "
            "use merge"
        )
    parts = [(source, position) for source in (store, more) for position in range(len(source))]
    return _write(parts, target, progress)


def _write(parts: Sequence[Part], target: Path, progress: Progress) -> MaskStore:
    if not parts:
        raise StoreError(f"{target}: no image to put into it")
    keys = [store.keys[position] for store, position in parts]
    shapes = np.array([store.shapes[position] for store, position in parts], np.int32)
    header = replace(
        parts[0][0].header,
        n_images=len(parts),
        extent=new_extent(shapes),
        key_bytes=key_bytes(keys),
        seal="",
        embeddings=(),
    )
    return fill_store(target, header, keys, shapes, lambda row: _copy(*parts[row]), progress)


def _copy(store: MaskStore, position: int) -> Row:
    key, state = store.keys[position], int(store.states[position])
    digest = store.digest(key)
    if state != DONE:
        return Row(ImageOutcome(state, digest, error=store.error(key)))
    blurred, sharp = (store.image(name, key) if store.header.images else None for name in ("blurred", "sharp"))
    return Row.done(ImageContent(store.atoms(key), store.records(key), blurred, sharp), digest)


def _require_kinship(first: MaskStore, other: MaskStore, more: Sequence[str] = ()) -> None:
    for name in ("digest", "images", *more):
        mine, theirs = getattr(first.header, name), getattr(other.header, name)
        if nfc(str(mine)) != nfc(str(theirs)):
            raise StoreError(f"{other.path}: {name} is {theirs}, in {first.path} it is {mine}")
    differences = recipe_differences(first.header.recipe, other.header.recipe)
    if differences:
        raise StoreError(f"{other.path}: made by another recipe than {first.path} ({'; '.join(differences)})")


def _require_same_image(key: str, one: Part, other: Part) -> None:
    """Raise StoreError when two stores have an image of one name that is not the same."""
    (first, here), (second, there) = one, other
    sizes = [tuple(int(side) for side in store.shapes[position]) for store, position in (one, other)]
    if all(any(size) for size in sizes) and sizes[0] != sizes[1]:
        raise StoreError(f"{key} has other sizes in {first.path} and {second.path}")
    if first.states[here] == second.states[there] == DONE:
        if first.digest(key) != second.digest(key):
            raise StoreError(f"{key} is another image in {first.path} than in {second.path} (their digests differ)")
        if first.atoms(key) != second.atoms(key):
            raise StoreError(f"{key} has other masks in {first.path} than in {second.path}")

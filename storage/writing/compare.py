"""What two stores differ in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from samdeblur.storage.atoms import AtomMap
from samdeblur.storage.format.layout import DONE, IMAGE_NAMES, STATE_NAMES
from samdeblur.storage.names import nfc
from samdeblur.storage.plurals import counted
from samdeblur.storage.store import MaskStore

if TYPE_CHECKING:
    from scipy.sparse import coo_array, csr_array

SHOWN = 5  # keys named of those that only one store has
CHANGE = "{name} {old} -> {new}"
SINCE = "{name}: was {old}, now {new}"
IN_WORDS = {"predeblur": "pre-deblurring"}


def store_differences(first: MaskStore, second: MaskStore, images: bool = True) -> Iterator[str]:
    """One line per difference, nothing for stores that mean the same, however their files lie.

    Args:
        images: whether images are compared, where both stores hold them.
    """
    for name in ("dataset", "split", "digest", "images"):
        mine, theirs = getattr(first.header, name), getattr(second.header, name)
        if nfc(str(mine)) != nfc(str(theirs)):
            yield f"{name}: {mine} -> {theirs}"
    yield from (f"recipe: {phrase}" for phrase in recipe_differences(first.header.recipe, second.header.recipe))
    for store, other in ((first, second), (second, first)):
        missing = [key for key in store.keys if key not in other]
        if missing:
            more = ", ..." if len(missing) > SHOWN else ""
            yield f"{counted(len(missing), 'image')} only in {store.path}: {', '.join(missing[:SHOWN])}{more}"
    shared = [key for key in first.keys if key in second]
    order = [second.position(key) for key in shared]
    if order != sorted(order):
        yield "the images are in another order"
    for key in shared:
        yield from (f"{key}: {phrase}" for phrase in _image_differences(first, second, key, images))


def _image_differences(first: MaskStore, second: MaskStore, key: str, images: bool) -> Iterator[str]:
    if first.shape(key) != second.shape(key):
        sizes = [f"{width}x{height}" for height, width in (first.shape(key), second.shape(key))]
        yield " -> ".join(sizes)
        return
    states = [STATE_NAMES[store.states[store.position(key)]] for store in (first, second)]
    if states[0] != states[1]:
        yield " -> ".join(states)
        return
    if first.header.digest == second.header.digest and first.digest(key) != second.digest(key):
        yield "digests of the image differ"
    if states[0] != STATE_NAMES[DONE]:
        if first.error(key) != second.error(key):
            yield f"{first.error(key)} -> {second.error(key)}"
        return
    mine, theirs = first.atoms(key), second.atoms(key)
    if mine != theirs:
        same = len(same_masks(mine, theirs))
        order = ", in another order" if same == mine.n_masks == theirs.n_masks else ""
        yield f"{mine.n_masks} -> {counted(theirs.n_masks, 'mask')}, {same} of them equal{order}"
    else:
        records = first.records(key), second.records(key)
        differ = [n for n in records[0] if not np.array_equal(records[0][n], records[1][n], equal_nan=True)]
        if differ:
            yield f"records differ in {', '.join(differ)}"
    if images and first.header.images and second.header.images:
        for name in IMAGE_NAMES:
            if not np.array_equal(first.image(name, key), second.image(name, key)):
                yield f"the {name} images differ"


def same_masks(first: AtomMap, second: AtomMap) -> NDArray[np.int64]:
    """(N, 2) numbers of masks, one of each map of the same (H, W), that have the same pixels; empty masks left out."""
    shared = _intersections(first, second)
    areas = first.mask_areas()[shared.row], second.mask_areas()[shared.col]
    equal = (shared.data == areas[0]) & (shared.data == areas[1])
    return np.stack([shared.row[equal], shared.col[equal]], axis=1).astype(np.int64)


def best_iou(first: AtomMap, second: AtomMap) -> NDArray[np.float64]:
    """(M,) of each mask of the first map, the largest intersection over union with a mask of the second."""
    shared = _intersections(first, second)
    unions = first.mask_areas()[shared.row] + second.mask_areas()[shared.col] - shared.data
    best = np.zeros(first.n_masks)
    np.maximum.at(best, shared.row, shared.data / unions)
    return best


def _intersections(first: AtomMap, second: AtomMap) -> coo_array:
    """(M, N) pixels that masks of two maps of the same (H, W) share."""
    from scipy.sparse import coo_array

    joint = first.atoms.astype(np.int64) * (second.n_atoms + 1) + second.atoms
    overlaps, pixels = np.unique(joint, return_counts=True)
    rows, columns = np.divmod(overlaps, second.n_atoms + 1)
    shared = coo_array((pixels, (rows, columns)), (first.n_atoms + 1, second.n_atoms + 1)).tocsr()
    return (_table(first).T @ shared @ _table(second)).tocoo()


def _table(atoms: AtomMap) -> csr_array:
    """(K + 1, M), 1 where the mask covers the atom."""
    from scipy.sparse import coo_array

    ones = np.ones(len(atoms.pairs), np.int64)
    return coo_array((ones, tuple(atoms.pairs.T)), (atoms.n_atoms + 1, atoms.n_masks)).tocsr()


def recipe_differences(
    stored: Mapping[str, Any], asked: Mapping[str, Any], form: str = CHANGE, prefix: str = ""
) -> list[str]:
    """One phrase per setting in which two recipes differ, such as "segmenter.points_per_side 32 -> 16".

    Args:
        form: of a phrase, CHANGE or SINCE.
    """
    found = []
    for name in sorted(stored.keys() | asked.keys()):
        old, new = stored.get(name), asked.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping) and old.get("name") == new.get("name"):
            found += recipe_differences(old, new, form, f"{prefix}{name}.")
        elif old != new:
            found.append(form.format(name=prefix + IN_WORDS.get(name, name), old=_short(old), new=_short(new)))
    return found


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        value = value.get("name") or (f"network {value['checkpoint'][:12]}" if "checkpoint" in value else dict(value))
    text = "none" if value is None else str(value)
    return text if len(text) <= 24 else f"{text[:12]}..."

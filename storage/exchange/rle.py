"""Masks as COCO run-length encoding (RLE): counts of zeros and ones in turn, column by column.

pycocotools encodes, and draws polygons. It trusts what it is given and can crash on damaged counts, so those are read
here, and polygons are checked before they get there.

Shapes: H W pixels, M masks.
"""

from __future__ import annotations

from itertools import chain
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from samdeblur.storage.atoms import AtomMap
from samdeblur.storage.format.layout import MAX_PIXELS, MAX_SIDE, StoreError

BATCH_BYTES = 1 << 26  # of dense masks held at once, unless one alone is larger
MAX_COUNT_CHARACTERS = 7  # 35 bits; the longest run of an image of MAX_PIXELS takes 6
MAX_COORDINATE = 1 << 20
MAX_OUTLINE = 1 << 22  # pixels along the polygons of a mask; pycocotools needs about 40 bytes for each


class ExchangeError(StoreError):
    """A file of another program that cannot be read as what it should be, or masks that do not fit its format."""


def encode_masks(atoms: AtomMap) -> list[dict[str, Any]]:
    """Compressed RLE of every mask, `{"size": [H, W], "counts": str}`, in order; a batch of them is dense at a time."""
    height, width = atoms.shape
    columns = atoms.atoms.T  # RLE runs down the columns
    batch = max(1, BATCH_BYTES // max(height * width, atoms.n_atoms + 1))
    encoded: list[dict[str, Any]] = []
    for first in range(0, atoms.n_masks, batch):
        count = min(batch, atoms.n_masks - first)
        rows = atoms.pairs[(atoms.pairs[:, 1] >= first) & (atoms.pairs[:, 1] < first + count)]
        table = np.zeros((count, atoms.n_atoms + 1), np.uint8)
        table[rows[:, 1] - first, rows[:, 0]] = 1
        dense = table.take(columns, axis=1)  # (count, W, H)
        encoded += coco_mask.encode(dense.transpose(2, 1, 0))
    return [{"size": [height, width], "counts": rle["counts"].decode()} for rle in encoded]


def decode_segmentation(segmentation: Any, height: int, width: int) -> NDArray[np.bool_]:
    """The mask, (H, W) bool, that COCO's field `segmentation` describes in an image of this size.

    Args:
        segmentation: RLE `{"size": [H, W], "counts": ...}`, with compressed counts (str, bytes) or a list of them, or
            a list of polygons [x1, y1, x2, y2, ...] whose union it is.

    Raises:
        ExchangeError: none of these, of another size, or runs that do not fill the image exactly.
    """
    check_size(height, width)
    if isinstance(segmentation, dict):
        runs = _checked_runs(segmentation, height, width)
    elif isinstance(segmentation, list):
        drawn = coco_mask.frPyObjects(_checked_polygons(segmentation), height, width)
        runs = _runs(coco_mask.merge(drawn)["counts"])
    else:
        _refuse("is neither RLE nor polygons")
    columns = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height)
    return np.ascontiguousarray(columns.T)


def check_size(height: Any, width: Any) -> tuple[int, int]:
    """The same, which are sides of an image that a store can hold. Raises ExchangeError."""
    if type(height) is not int or type(width) is not int or min(height, width) < 1:
        raise ExchangeError(f"its width and height are {brief(width)} and {brief(height)}, not positive whole numbers")
    if max(height, width) > MAX_SIDE or height * width > MAX_PIXELS:
        raise ExchangeError(f"it claims {brief(width)}x{brief(height)} pixels, more than a store can hold")
    return height, width


def brief(value: Any) -> str:
    """A value of a file for a message: cut when long, and only its type when it has parts."""
    return "a list or object" if isinstance(value, list | dict) else str(value)[:40]


def _checked_runs(segmentation: dict[str, Any], height: int, width: int) -> NDArray[np.int64]:
    """Run lengths that fill the image. Raises ExchangeError."""
    size, counts = segmentation.get("size"), segmentation.get("counts")
    if not isinstance(size, list | tuple) or list(size) != [height, width]:
        found = " x ".join(map(brief, size)) if isinstance(size, list | tuple) and len(size) == 2 else brief(size)
        _refuse(f"is of height x width {found}, the image of {height} x {width}")
    if not isinstance(counts, list):
        runs = _runs(_ascii(counts))
    elif all(type(count) is int and 0 <= count <= height * width for count in counts):
        runs = np.array(counts, np.int64)
    else:
        _refuse("has counts that are not whole numbers within the image")
    if runs.min(initial=0) < 0 or runs.max(initial=0) > height * width or runs.sum() != height * width:
        _refuse(f"has counts that do not fill the {height * width} pixels of the image")
    return runs


def _ascii(counts: Any) -> bytes:
    try:
        return counts if isinstance(counts, bytes) else counts.encode("ascii")
    except (AttributeError, UnicodeEncodeError):
        _refuse("has counts that are neither a list nor compressed")


def _runs(counts: bytes) -> NDArray[np.int64]:
    """The run lengths in compressed counts.

    A count is written in pieces of five bits, the lowest first, one character from "0" on each; the sixth bit says
    that another piece follows, and the fifth bit of the last piece is the sign. From the fourth on, counts are
    differences to the second last one (pycocotools, common/maskApi.c, rleToString).

    Raises:
        ExchangeError: other characters, an unfinished count, or one of more pieces than any image needs.
    """
    pieces = np.frombuffer(counts, np.uint8).astype(np.int64) - ord("0")
    if ((pieces < 0) | (pieces > 63)).any() or (len(pieces) and pieces[-1] & 32):
        _refuse("has damaged counts")
    ends = np.flatnonzero(pieces & 32 == 0)
    lengths = np.diff(ends, prepend=-1)
    if lengths.max(initial=0) > MAX_COUNT_CHARACTERS:
        _refuse("has damaged counts")
    place = np.arange(len(pieces)) - np.repeat(ends - lengths + 1, lengths)
    values = np.zeros(len(ends), np.int64)
    np.add.at(values, np.repeat(np.arange(len(ends)), lengths), (pieces & 31) << (5 * place))
    values -= np.where(pieces[ends] & 16, np.left_shift(1, 5 * lengths), 0)
    for chain_start in (1, 2):
        values[chain_start::2] = values[chain_start::2].cumsum()
    return values


def _checked_polygons(polygons: list[Any]) -> list[list[float]]:
    """The same polygons. Raises ExchangeError for those that pycocotools would stumble over."""
    if not polygons or not all(isinstance(polygon, list) for polygon in polygons):
        _refuse("is neither RLE nor polygons")
    if not all(len(polygon) >= 6 and len(polygon) % 2 == 0 for polygon in polygons):
        _refuse("has a polygon that is not three or more points x, y")
    for value in chain.from_iterable(polygons):
        if type(value) not in (int, float) or not abs(value) <= MAX_COORDINATE:  # NaN is refused as well
            _refuse(f"has a polygon through {brief(value)}")
    outline = 0.0
    for polygon in polygons:
        points = np.array(polygon, float).reshape(-1, 2)
        outline += np.abs(points - np.roll(points, 1, axis=0)).max(axis=1).sum()
    if outline > MAX_OUTLINE:
        _refuse(f"has polygons of {outline:.0f} pixels around, at most {MAX_OUTLINE} can be drawn")
    return polygons


def _refuse(reason: str) -> NoReturn:
    raise ExchangeError(f"its segmentation {reason}")

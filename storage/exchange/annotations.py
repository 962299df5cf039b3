"""What the formats of other programs have in common: what each gives to an import, and the annotation of a mask.

An annotation is a JSON object: COCO's `segmentation`, `bbox` and `area`, and Segment Anything's `predicted_iou`,
`stability_score`, `point_coords` [[x, y]] and `crop_box` [x, y, width, height] (its automatic mask generator). Area and
box follow from the mask: they are written, never read.

Shapes: H W pixels, M masks, K atoms.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samdeblur.storage.atoms import MAX_ATOMS, AtomMap, TooManyAtoms
from samdeblur.storage.exchange.rle import (
    BATCH_BYTES,
    ExchangeError,
    brief,
    check_size,
    decode_segmentation,
    encode_masks,
)
from samdeblur.storage.files import open_regular
from samdeblur.storage.format.layout import MAX_RECORDS
from samdeblur.storage.listing import files_in
from samdeblur.storage.names import nfc
from samdeblur.storage.writing.commits import check_caps

Records = dict[str, NDArray[np.float64]]

# Fields of an annotation and the columns of a store that hold them, by the shape of the value in JSON.
LEFT_OUT = "left out:"  # how a note of such things begins
SCORES = ("predicted_iou", "stability_score")
POINT = ("point_x", "point_y")
CROP_BOX = ("crop_box_x", "crop_box_y", "crop_box_w", "crop_box_h")


@dataclass
class LeftOut:
    """What of a source is of no use and is left out, counted and named; in `strict` reading it is an error instead."""

    strict: bool = False
    reasons: list[str] = field(default_factory=list)

    def add(self, reason: str) -> None:
        """Raises ExchangeError when reading is strict."""
        if self.strict:
            raise ExchangeError(reason)
        self.reasons.append(reason)

    def notes(self) -> list[str]:
        if not self.reasons:
            return []
        return [f"{LEFT_OUT} {len(self.reasons)} of no use, the first: {self.reasons[0]} (--strict refuses them)"]


@dataclass(frozen=True)
class Listing:
    """What a source holds, known before any mask is decoded.

    Attributes:
        keys: I names, in the order of the store.
        shapes: I pairs height, width; 0 0 where unknown.
        problems: position -> why, of images known to be of no use already; `read` is not called for these.
        sizeless: position -> why nothing says how large an image is; of no use either, until its image says it.
        read: gives, of the number of an image and its height and width, the masks and their records without area and
            box; columns may be missing. Raises ExchangeError or TooManyAtoms for an image that cannot be used.
        digest_kind: what of the images is known: "pixels", "file" or "none".
        digest: gives that of image number i, 32 bytes. Raises ExchangeError as `read`.
        claims: the recipe that the source says its masks were made by, if any.
        notes: what the format does not hold, one line each.
    """

    keys: Sequence[str]
    shapes: Sequence[tuple[int, int]]
    problems: Mapping[int, str]
    sizeless: Mapping[int, str]
    read: Callable[[int, tuple[int, int]], tuple[AtomMap, Records]]
    digest_kind: str = "none"
    digest: Callable[[int], bytes] = lambda position: bytes(32)
    claims: Any = None
    notes: Sequence[str] = ()


def list_folder(
    folder: Path,
    suffix: str,
    size: Callable[[Path], tuple[int, int]],
    read: Callable[[Path, tuple[int, int]], tuple[AtomMap, Records]],
    notes: Sequence[str],
    name: Callable[[str, Path], str] = lambda stem, path: stem,
) -> Listing:
    """The files in a folder and its folders, with a suffix such as ".png", in any case; otherwise as `list_files`.

    Args:
        name: gives the key of the image of a file, from its relative name without the suffix and its path.
    """
    files: dict[str, Path] = {}
    for file, path in files_in(folder):
        if not file.lower().endswith(suffix):
            continue
        key = name(nfc(file[: -len(suffix)]), path)
        if files.setdefault(key, path) != path:
            raise ExchangeError(f"{path}: and {files[key].name} have the same name; keep one of them there")
    return list_files(files, size, read, notes)


def list_files(
    files: Mapping[str, Path],
    size: Callable[[Path], tuple[int, int]],
    read: Callable[[Path, tuple[int, int]], tuple[AtomMap, Records]],
    notes: Sequence[str],
) -> Listing:
    """Images that are a file, or a folder, each, sorted by key.

    Args:
        files: key -> path.
        size: gives height and width of the image of a file. Raises ExchangeError for a file of no use, LookupError for
            one that does not say how large its image is.
        read: `Listing.read`, given the file in place of its position.
    """
    keys = sorted(files)
    return Listing(
        keys,
        *sizes_of(len(keys), lambda position: size(files[keys[position]])),
        lambda position, shape: read(files[keys[position]], shape),
        notes=notes,
    )


Sizes = tuple[list[tuple[int, int]], dict[int, str], dict[int, str]]


def sizes_of(count: int, size: Callable[[int], tuple[int, int]]) -> Sizes:
    """`Listing.shapes`, `problems` and `sizeless` of images of which `size` gives height and width, or raises."""
    shapes: list[tuple[int, int]] = []
    problems: dict[int, str] = {}
    sizeless: dict[int, str] = {}
    for position in range(count):
        try:
            shapes.append(size(position))
        except (ExchangeError, LookupError) as error:
            shapes.append((0, 0))
            (problems if isinstance(error, ExchangeError) else sizeless)[position] = str(error)
    return shapes, problems, sizeless


def rle_size(annotations: Sequence[Any]) -> tuple[int, int]:
    """What the first mask in RLE says of the size of its image. Raises ExchangeError, or LookupError without any."""
    for annotation in annotations:
        segmentation = annotation.get("segmentation") if isinstance(annotation, dict) else None
        size = segmentation.get("size") if isinstance(segmentation, dict) else None
        if isinstance(size, list) and len(size) == 2:
            return check_size(*size)
    raise LookupError("no mask in RLE, which alone says how large its image is")


def load_json(path: Path) -> Any:
    """Raises ExchangeError when a file is not JSON, or nested too deeply."""
    try:
        with open_regular(path) as file:
            return json.load(file)
    except OSError as error:
        raise ExchangeError(f"cannot be read ({error.strerror})") from error
    except RecursionError as error:
        raise ExchangeError("nested too deeply to be a list of masks") from error
    except ValueError as error:
        raise ExchangeError(f"not JSON, or cut off ({error})") from error


def fields(value: Any, what: str) -> dict[str, Any]:
    """The value when it is a JSON object. Raises ExchangeError."""
    if not isinstance(value, dict):
        raise ExchangeError(f"{what} is {brief(value)}, not an object")
    return value


def items(value: Any, what: str) -> list[Any]:
    """The value when it is a JSON list. Raises ExchangeError."""
    if not isinstance(value, list):
        raise ExchangeError(f"{what} are not a list")
    return value


def annotations_of(atoms: AtomMap, records: Records) -> Iterator[dict[str, Any]]:
    """One annotation per mask, in order. Values that are no finite numbers are left out."""
    areas, boxes = atoms.mask_areas(), atoms.mask_boxes()
    for mask, rle in enumerate(encode_masks(atoms)):
        row = {name: _or_none(column[mask]) for name, column in records.items()}
        annotation: dict[str, Any] = {"segmentation": rle, "bbox": boxes[mask].tolist(), "area": int(areas[mask])}
        annotation |= {name: row[name] for name in SCORES if row[name] is not None}
        point, crop_box = [row[name] for name in POINT], [row[name] for name in CROP_BOX]
        if point != [None] * 2:
            annotation["point_coords"] = [point]
        if crop_box != [None] * 4:
            annotation["crop_box"] = crop_box
        yield annotation


def read_annotations(
    annotations: Sequence[Any], height: int, width: int, left_out: LeftOut | None = None, image: str = ""
) -> tuple[AtomMap, Records]:
    """Masks and records of the annotations of one image of this size, as `Listing.read` gives them.

    Args:
        left_out: takes the annotations that make no sense; without it the first of them is raised.
        image: its name, for these.

    Raises:
        ExchangeError: an annotation that makes no sense, or all of them; named by its number in the image, from 1 on.
        TooManyAtoms: more masks or atoms than a store holds.
    """
    check_size(height, width)
    left_out = left_out or LeftOut(strict=True)
    columns = (*SCORES, *POINT, *CROP_BOX)
    rows: list[list[float]] = []
    wrong: list[str] = []

    def masks() -> Iterator[NDArray[np.bool_]]:
        for number, annotation in enumerate(annotations, start=1):
            try:
                values = list(_values(fields(annotation, "it")))
                mask = decode_segmentation(annotation.get("segmentation"), height, width)
            except ExchangeError as error:
                reason = f"annotation {number} of {len(annotations)}: {error}"
                if left_out.strict or (len(wrong) + 1 == len(annotations)):
                    raise ExchangeError(reason) from error
                wrong.append(f"{image}: {reason}" if image else reason)
                continue
            rows.append(values)
            yield mask

    atoms = stack_masks(masks(), len(annotations), (height, width))
    for reason in wrong:
        left_out.add(reason)
    return atoms, dict(zip(columns, np.array(rows, float).reshape(-1, len(columns)).T, strict=True))


def stack_masks(masks: Iterable[NDArray[np.bool_]], n_masks: int, shape: tuple[int, int]) -> AtomMap:
    """`AtomMap.from_masks` of at most M planes (H, W) that come one by one; a batch of them is dense at a time.

    Raises:
        TooManyAtoms: more than a row of a store holds.
    """
    if n_masks > MAX_RECORDS:
        raise TooManyAtoms(f"{n_masks} masks; a store holds at most {MAX_RECORDS} per image")
    size = max(1, BATCH_BYTES // (shape[0] * shape[1]))
    stacked = AtomMap.empty(shape)
    planes = iter(masks)
    while batch := list(itertools.islice(planes, size)):
        added = AtomMap.from_masks(batch, shape)
        stacked = _joined(stacked, added) if stacked.n_masks else added
        check_caps(stacked)
    return stacked


def _joined(first: AtomMap, second: AtomMap) -> AtomMap:
    """The map of the masks of two maps of one image, one after the other.

    An atom of it is where an atom of the one meets an atom of the other; it lies in the masks of both.
    """
    codes = first.atoms.ravel().astype(np.uint32) * np.uint32(second.n_atoms + 1) + second.atoms.ravel()
    starts = np.concatenate([[0], np.flatnonzero(codes[1:] != codes[:-1]) + 1])  # runs of equal codes: few
    found, run, inverse = np.unique(codes[starts], return_index=True, return_inverse=True)
    covered = np.flatnonzero(found)
    covered = covered[np.argsort(run[covered])]  # raster order of their first pixels
    if len(covered) > MAX_ATOMS:
        raise TooManyAtoms(f"{len(covered)} atoms, at most {MAX_ATOMS} can be stored")
    number = np.zeros(len(found), np.uint16)
    number[covered] = np.arange(1, len(covered) + 1)
    plane = np.repeat(number[inverse], np.diff(starts, append=codes.size)).reshape(first.shape)
    probes = starts[run[covered]]  # one pixel of each atom
    tables = [part.mask_table()[part.atoms.ravel()[probes]] for part in (first, second)]
    rows, masks = np.nonzero(np.concatenate(tables, axis=1))
    n_masks = first.n_masks + second.n_masks
    pairs = np.stack([rows + 1, masks], axis=1).astype(np.uint16)
    return AtomMap(plane, pairs, np.arange(n_masks, dtype=np.int32))


def _values(annotation: dict[str, Any]) -> Iterator[float]:
    """The values of SCORES, POINT and CROP_BOX, NaN where there are none. Raises ExchangeError."""
    for name in SCORES:
        yield _number(annotation.get(name), name)
    points = items(annotation.get("point_coords") or [], "point_coords")  # null as well, for none
    yield from _row(points[0] if len(points) == 1 else None, "point_coords", len(POINT))  # one is what a store holds
    yield from _row(annotation.get("crop_box"), "crop_box", len(CROP_BOX))


def _row(value: Any, name: str, length: int) -> list[float]:
    if value is None:
        return [np.nan] * length
    if not isinstance(value, list) or len(value) != length:
        raise ExchangeError(f"its {name} are not {length} numbers")
    return [_number(item, name) for item in value]


def _number(value: Any, name: str) -> float:
    """A number as float64; NaN for null."""
    if value is None:
        return np.nan
    if type(value) not in (int, float):
        raise ExchangeError(f"its {name} is {brief(value)}, not a number")
    try:
        return float(value)
    except OverflowError as error:
        raise ExchangeError(f"its {name} is beyond the numbers a store holds") from error


def _or_none(value: np.float64) -> float | None:
    return float(value) if np.isfinite(value) else None  # JSON has no other numbers

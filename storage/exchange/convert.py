"""Masks of other programs into a store, and a store's masks into files that other programs read."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from samdeblur.storage.atoms import TooManyAtoms
from samdeblur.storage.exchange.amg import TABLE, is_list, is_table, list_amg, numbered
from samdeblur.storage.exchange.annotations import CROP_BOX, POINT, SCORES, LeftOut, Listing
from samdeblur.storage.exchange.coco import Progress, export_instances, export_results, list_instances, list_results
from samdeblur.storage.exchange.ome import export_ome
from samdeblur.storage.exchange.originals import with_originals
from samdeblur.storage.exchange.parquet import export_parquet, list_parquet
from samdeblur.storage.exchange.released import list_grey, list_npz
from samdeblur.storage.exchange.rle import ExchangeError
from samdeblur.storage.exchange.sa1b import export_folder, list_sa1b
from samdeblur.storage.files import decode_text, open_regular, sha256_file
from samdeblur.storage.format.layout import (
    MAX_IMAGES,
    MAX_KEY_BYTES,
    MAX_PIXELS,
    PENDING,
    QUARANTINED,
    Header,
    StoreError,
)
from samdeblur.storage.listing import files_in
from samdeblur.storage.plurals import counted
from samdeblur.storage.store import MaskStore
from samdeblur.storage.writing.bulk import BLOCK_SIZE, Row, fill_store, key_bytes, new_extent
from samdeblur.storage.writing.commits import ImageContent, ImageOutcome, geometry_records

__all__ = ["EXPORTS", "FORMATS", "ExchangeError", "export_masks", "import_masks"]

WRITERS = {
    "coco-instances": export_instances,
    "coco-results": export_results,
    "sa-1b": export_folder,
    "ome-zarr": export_ome,
    "parquet": export_parquet,
}
READERS: dict[str, Callable[[Path, LeftOut], Listing]] = {
    "coco-instances": list_instances,
    "coco-results": list_results,
    "sa-1b": list_sa1b,
    "amg": list_amg,
    "parquet": list_parquet,
    "grey-png": lambda folder, left_out: list_grey(folder),
    "npz": lambda folder, left_out: list_npz(folder),
}
FORMATS = tuple(READERS)
EXPORTS = tuple(WRITERS)
COCO = ("coco-instances", "coco-results")
FILES = (*COCO, "parquet")
PARQUET_FOLDER = (
    "a folder; Parquet is read from one file: write pyarrow.parquet.read_table(FOLDER) to one with write_table"
)
FOLDERS = {".json": "sa-1b", ".png": "grey-png", ".npz": "npz"}

MAX_CLAIMS = 1 << 20  # bytes of a recipe that goes along
MAX_NESTING = 64
COLUMNS = {name: name for name in SCORES} | {POINT[0]: "point", CROP_BOX[0]: "crop box"}  # what may be missing


def export_masks(
    store: MaskStore, target: Path, format: str, progress: Progress = lambda images: None, **options: Any
) -> list[str]:
    """Write the masks and records of every image that is done.

    Args:
        target: a file for the formats of COCO, replaced when it is there; a new folder for "sa-1b" and "ome-zarr".
        format: one of EXPORTS.
        progress: called with the number of images written since the last call.
        options: of the format, see `export_instances`.

    Returns:
        What the format does not hold of this store, one statement each.

    Raises:
        StoreError: images are pending.
        ExchangeError: unknown format, or something that it cannot hold; nothing is written.
        StoreDamaged: as `MaskStore.atoms`.
    """
    if format not in WRITERS:
        raise ExchangeError(f"unknown format {format!r} to export to, choose from {', '.join(EXPORTS)}")
    pending = int((store.states == PENDING).sum())
    if pending:
        raise StoreError(
            f"{store.path}: {pending} of {counted(len(store), 'image')} pending; finish it with samdeblur-prep run"
        )
    notes = WRITERS[format](store, target, progress, **options)
    quarantined = int((store.states == QUARANTINED).sum())
    if quarantined:
        notes.append(f"{counted(quarantined, 'quarantined image')} left out")
    if store.header.images and format != "ome-zarr":
        notes.append(
            f"{format} holds masks alone: the pixels of {counted(len(store.ready_keys), 'image')} are left out"
        )
    return notes


def import_masks(
    source: Path,
    target: Path,
    format: str | None,
    dataset: str,
    split: str,
    images: Path | None = None,
    progress: Progress = lambda images: None,
    strict: bool = False,
    categories: Sequence[str] = (),
) -> list[str]:
    """Make a store of masks that another program wrote; an interrupted import goes on when it is run again.

    An image that cannot be used is quarantined with the reason, what belongs to no image and single annotations that
    make no sense are left out and counted; the rest is imported. COCO's formats are read whole
    into memory, the others image by image.

    Args:
        source: a file for the formats of COCO, a folder of one file per image for the others.
        target: the new store.
        format: one of FORMATS, or None to tell it from the source.
        dataset, split: names written into the store.
        images: a folder of the images, named like the keys. Sizes are compared, and digests taken.
        progress: called with the number of images that came into the store since the last call.
        strict: refuse a file for anything that would be left out, and quarantine an image for any annotation.
        categories: names or ids of those of COCO that are read; all where there are none.

    Returns:
        What is not in the store or not known of its masks, one statement each.

    Raises:
        FileNotFoundError: no source, or no folder of images.
        ExchangeError: a source of which nothing can be used.
        StoreError: another store lies at the target.
        StoreBusy: another job writes to it.
    """
    for path in (source, images):
        if path is not None and not path.exists():
            raise FileNotFoundError(f"{path}: no such file or folder")
    name = format or detect_format(source)
    if name not in READERS:
        raise ExchangeError(f"unknown format {name!r} to import, choose from {', '.join(FORMATS)}")
    expected = "file" if name in FILES else "folder"
    if name == "parquet" and source.is_dir():
        raise ExchangeError(f"{source}: {PARQUET_FOLDER}")
    if source.is_dir() != (expected == "folder"):
        raise ExchangeError(f"{source}: {name} is a {expected}; name another format")
    try:
        left_out = LeftOut(strict)
        if categories and name not in COCO:
            raise ExchangeError(f"{name} has no categories to choose from")
        listing = READERS[name](source, left_out, categories) if name in COCO else READERS[name](source, left_out)  # type: ignore[call-arg]
        if not listing.keys and left_out.reasons:
            raise ExchangeError(left_out.reasons[0])
        if images is not None:
            listing = with_originals(listing, images)
        _check(listing)
    except ExchangeError as error:
        raise ExchangeError(f"{source}: cannot be imported as {name}: {error}") from error

    lost = _lost_claims(listing.claims)
    claims = {} if lost or listing.claims is None else {"claims": listing.claims}
    recipe = {"imported": {"format": name, "sha256": _sha256(source), **claims}}
    shapes = np.array(listing.shapes, np.int32)
    sizes = len(listing.keys), new_extent(shapes), key_bytes(listing.keys), BLOCK_SIZE
    header = Header(dataset, split, recipe, listing.digest_kind, *sizes, images=False)
    unknown: Counter[str] = Counter()
    store = fill_store(target, header, listing.keys, shapes, lambda i: _row(listing, i, unknown), progress)
    return [*listing.notes, *lost, *left_out.notes(), *_unknown(store, unknown)]


def detect_format(source: Path) -> str:
    """The format of a file or a folder, by the names in it. Raises ExchangeError when they do not tell."""
    if (source / "zarr.json").exists():
        raise ExchangeError(f"{source}: a store already; use it as it is")
    if source.is_dir():
        if form := _amg(source):
            return form
        found = sorted({path.suffix.lower() for _, path in files_in(source)} & set(FOLDERS))
        if len(found) == 1:
            return FOLDERS[found[0]]
        if any(path.suffix.lower() == ".parquet" for _, path in files_in(source)):
            raise ExchangeError(f"{source}: {PARQUET_FOLDER}")
        held = f"files of {' and '.join(found)} in it" if found else f"none of {', '.join(FOLDERS)} in it; its files"
        raise ExchangeError(f"{source}: {held} do not tell its format; name one of {', '.join(FORMATS)}")
    with open_regular(source) as file:
        head = file.read(64)
    if head.startswith(b"PAR1"):
        return "parquet"
    start = decode_text(head, errors="ignore").lstrip()[:1]  # the last character may be cut
    if start == "<":
        raise ExchangeError(f"{source}: XML; if it is CVAT's, export the task as COCO 1.0 there and import that")
    if start not in ("[", "{"):
        raise ExchangeError(
            f"{source}: not JSON or Parquet, the formats of one file; for the other formats name a folder"
        )
    return "coco-results" if start == "[" else "coco-instances"


def _amg(source: Path) -> str:
    """The format of a folder that `scripts/amg.py` wrote, where each image is a folder of masks or a JSON list."""
    files = [path for _, path in sorted(files_in(source))]
    if any(path.name == TABLE and is_table(path) for path in files):
        return "amg"
    first = next((path for path in files if path.suffix.lower() == ".json"), None)
    if first is not None and is_list(first):
        return "amg"
    for folder in sorted({path.parent for path in files if path.name == "0.png"} - {source}):
        if numbered(folder):
            raise ExchangeError(
                f"{source}: {folder.name} holds 0.png and so on, which may be the masks of one image (amg, whose "
                "metadata.csv is missing) or the images of a sequence (grey-png); say which by --format"
            )
    return ""


def _row(listing: Listing, position: int, unknown: Counter[str]) -> Row:
    """An image done or quarantined; `unknown` counts the masks that miss a record."""
    digest = bytes(32)
    try:
        if problem := listing.problems.get(position, listing.sizeless.get(position)):
            raise ExchangeError(problem)
        digest = listing.digest(position)
        atoms, records = listing.read(position, listing.shapes[position])
        row = Row.done(ImageContent(atoms, records | geometry_records(atoms)), digest)
    except (ExchangeError, TooManyAtoms, RecursionError) as error:
        return Row(ImageOutcome(QUARANTINED, digest, error=" ".join(str(error).split())))
    missing = np.full(atoms.n_masks, np.nan)
    for column, name in COLUMNS.items():
        unknown[name] += int(np.isnan(records.get(column, missing)).sum())
    return row


def _unknown(store: MaskStore, unknown: Counter[str]) -> list[str]:
    """What is not known of the masks of a store just made."""
    notes = []
    missing = [f"{name} of {counted(count, 'mask')}" for name, count in unknown.items() if count]
    if missing:
        notes.append(f"not known: {', '.join(missing)}")
    if store.header.digest == "none":
        notes.append(
            f"no digests are known of {counted(len(store), 'image')}: name their folder with --images to compute them"
        )
    quarantined = [store.keys[i] for i in np.flatnonzero(store.states == QUARANTINED).tolist()]
    if quarantined:
        first = f"the first is {quarantined[0]}: {store.error(quarantined[0])}"
        notes.append(f"{len(quarantined)} of {counted(len(store), 'image')} quarantined; {first}")
    return notes


def _check(listing: Listing) -> None:
    """Raise ExchangeError for a listing that no store can hold."""
    keys = listing.keys
    if not keys:
        raise ExchangeError("no images in it")
    if len(keys) > MAX_IMAGES:
        raise ExchangeError(f"{len(keys)} images, a store holds at most {MAX_IMAGES}")
    for key, count in Counter(keys).items():
        if count > 1:
            raise ExchangeError(f"{count} images are named {key!r}; names must differ")
        if not key or "\0" in key or not _is_text(key) or len(key.encode()) > MAX_KEY_BYTES:
            raise ExchangeError(f"{key[:80]!r} cannot be the name of an image")
        if key.startswith("/") or "\\" in key or ".." in key.split("/"):
            raise ExchangeError(f"{key[:80]!r} is a name that leads out of its folder")
    problems = {**listing.sizeless, **listing.problems}
    if len(problems) == len(keys):
        advice = "; give --images, the folder of the images" if len(listing.problems) < len(keys) else ""
        raise ExchangeError(f"no image of {len(keys)} can be used, as {keys[0]}: {problems[0]}{advice}")
    height, width = new_extent(np.array(listing.shapes, np.int32))
    if height * width > MAX_PIXELS:
        raise ExchangeError(f"images up to {width} wide and up to {height} high do not fit into one store; divide them")


def _lost_claims(claims: Any) -> list[str]:
    """Whether the recipe in a file is not one that a store can hold."""
    try:
        text = json.dumps(claims, ensure_ascii=False, allow_nan=False).encode()
        if len(text) <= MAX_CLAIMS and _nesting(claims) <= MAX_NESTING:
            return []
        reason = "too large, or nested too deeply"
    except (ValueError, RecursionError) as error:
        reason = str(error)
    return [f"the recipe that the file gives is not kept: {reason}"]


def _is_text(key: str) -> bool:
    """Whether it can be written as UTF-8."""
    return not any("\ud800" <= character <= "\udfff" for character in key)


def _nesting(value: Any) -> int:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max(map(_nesting, parts), default=0)


def _sha256(source: Path) -> str:
    """SHA-256 (hex) of a file, or of the lines "SHA-256  relative path" of the files in a folder, sorted by path."""
    if source.is_file():
        return sha256_file(source).hex()
    files = sorted((name, path) for name, path in files_in(source) if path.is_file())  # no link that leads nowhere
    lines = (f"{sha256_file(path).hex()}  {name}\n" for name, path in files)
    return hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()

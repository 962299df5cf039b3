"""The form of SA-1B, the dataset of Segment Anything: one JSON file per image, with its size and its annotations."""

from __future__ import annotations

import json
import shutil
from pathlib import Path, PurePosixPath
from typing import Any

from samdeblur.storage.atoms import AtomMap
from samdeblur.storage.exchange.annotations import (
    LeftOut,
    Listing,
    Records,
    annotations_of,
    fields,
    items,
    list_folder,
    load_json,
    read_annotations,
)
from samdeblur.storage.exchange.coco import Progress, refuse_others
from samdeblur.storage.exchange.rle import ExchangeError, check_size
from samdeblur.storage.files import PARTIAL, fsync_path, write_durably
from samdeblur.storage.names import FILE_NAME_BYTES, bounded
from samdeblur.storage.store import MaskStore

SUFFIX = ".json"
LETTER_BYTES = 4  # of UTF-8 at most, that a shortened name may be short of its limit


def export_folder(store: MaskStore, target: Path, progress: Progress) -> list[str]:
    """Write KEY.json for each image of a store that is done, under a shorter name where the key is too long for a file.

    The folder appears whole or not at all.

    Returns:
        What is lost, one line each.

    Raises:
        ExchangeError: something lies at the target, or a key is no relative path.
    """
    files = relative_paths(store.ready_keys)
    partial = unfinished(target)
    partial.mkdir(parents=True)
    try:
        for key, file in files.items():
            write_durably(partial / file, json.dumps(_document(store, key)).encode())
            progress(1)
        partial.rename(target)
        fsync_path(target.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    notes = ["sa-1b holds no recipe and no digests of the images"]
    if list(files) != sorted(files):
        notes.append(f"sa-1b has no order of images: these {len(files)} come back sorted by name")
    return notes


def list_sa1b(folder: Path, left_out: LeftOut | None = None) -> Listing:
    """Every .json file of a folder, sorted by name; `left_out` takes annotations of no use."""

    def read(path: Path, shape: tuple[int, int]) -> tuple[AtomMap, Records]:
        annotations = items(fields(load_json(path), "the file").get("annotations"), "annotations")
        return read_annotations(annotations, *shape, left_out, path.name)

    return list_folder(folder, SUFFIX, _size, read, ("sa-1b holds no recipe and no digests of the images",), _key)


def _key(stem: str, path: Path) -> str:
    """The key of the image of a file: its name, or what it was before it was shortened."""
    if all(len(part.encode(errors="replace")) < FILE_NAME_BYTES - LETTER_BYTES for part in stem.split("/")):
        return stem
    try:
        key = fields(fields(load_json(path), "the file").get("image"), "its image").get("file_name")
    except ExchangeError:  # which is said when its masks are read
        return stem
    return key if isinstance(key, str) and _relative(key) == PurePosixPath(stem + SUFFIX) else stem


def unfinished(target: Path) -> Path:
    """The folder beside a new one in which its files are written; it is not there.

    Raises:
        ExchangeError: something lies at the target.
    """
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise ExchangeError(f"{target}: there already and not an empty folder; choose another name")
    partial = target.with_name(target.name + PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)
    return partial


def relative_paths(keys: list[str]) -> dict[str, PurePosixPath]:
    """Key -> the file of that image below the target. Raises ExchangeError for a key that would lead elsewhere."""
    files = {}
    for key in keys:
        if any(part in ("", ".", "..") for part in key.split("/")) or "\\" in key or "\0" in key:
            raise ExchangeError(
                f"image {key!r}: its name is not a relative path and cannot be a file; use a coco format"
            )
        files[key] = _relative(key)
    for key, file in files.items():
        if not set(file.parents).isdisjoint(files.values()):
            raise ExchangeError(f"image {key!r}: another image is named like its folder; use a coco format")
    return files


def _relative(key: str) -> PurePosixPath:
    return PurePosixPath("/".join(map(bounded, key.split("/"))) + SUFFIX)


def _document(store: MaskStore, key: str) -> dict[str, Any]:
    height, width = store.shape(key)
    image = {"image_id": store.position(key) + 1, "width": width, "height": height, "file_name": key}
    annotations = annotations_of(store.atoms(key), store.records(key))
    return {"image": image, "annotations": [{"id": n} | item for n, item in enumerate(annotations, start=1)]}


def _size(path: Path) -> tuple[int, int]:
    document = fields(load_json(path), "the file")
    refuse_others(document)
    image = fields(document.get("image"), "its image")
    return check_size(image.get("height"), image.get("width"))

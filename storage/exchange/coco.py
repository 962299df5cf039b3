"""COCO's two forms of masks: `instances`, which lists images and annotations, and `results`, a list of annotations.

Both are one JSON file. It is written image by image, and read whole into memory.

The store's own fields, which COCO's tools ignore: `info.samdeblur` (dataset, split, recipe, digest), `digest` of an
image, `file_name` in results, and what Segment Anything says of a mask (`foreign`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from samdeblur.storage.exchange.annotations import (
    Listing,
    annotations_of,
    fields,
    items,
    load_json,
    read_annotations,
    rle_size,
    sizes_of,
)
from samdeblur.storage.exchange.rle import ExchangeError, brief, check_size
from samdeblur.storage.files import PARTIAL, fsync_path
from samdeblur.storage.names import nfc
from samdeblur.storage.store import MaskStore

CATEGORY = {"id": 1, "name": "mask"}
Progress = Callable[[int], None]


def export_instances(store: MaskStore, target: Path, progress: Progress) -> list[str]:
    """Write the images of a store that are done; the file is replaced when it is there. Returns what is lost."""
    header = store.header
    about = {"dataset": header.dataset, "split": header.split, "recipe": header.recipe, "digest": header.digest}
    with _whole(target) as file:
        file.write(
            f'{{"info": {json.dumps({"samdeblur": about})},\n"categories": [{json.dumps(CATEGORY)}],\n"images": ['
        )
        _write_items(file, (_image(store, key) for key in store.ready_keys))
        file.write('],\n"annotations": [')
        _write_items(file, _numbered(_annotations(store, progress)))
        file.write("]}\n")
    return []


def export_results(store: MaskStore, target: Path, progress: Progress) -> list[str]:
    """As `export_instances`. The score is predicted_iou, or else stability_score, or else 1."""

    def results() -> Iterator[dict[str, Any]]:
        for key, annotation in _annotations(store, progress):
            del annotation["bbox"], annotation["area"]  # with these, pycocotools takes it for a box
            score = annotation.get("predicted_iou", annotation.get("stability_score", 1.0))
            yield annotation | {"score": score, "file_name": key}

    with _whole(target) as file:
        file.write("[")
        _write_items(file, results())
        file.write("]\n")
    notes = ["coco-results holds no recipe and no digests of the pictures"]
    empty = sum(not store.counts[store.position(key), 0] for key in store.ready_keys)
    if empty:
        notes.append(f"coco-results lists no images: {empty} images without masks are not in it")
    return notes


def list_instances(path: Path) -> Listing:
    """Images in file order, named by file_name or else by id. Raises ExchangeError."""
    document = fields(load_json(path), "the file")
    images = [fields(image, "an image") for image in items(document.get("images"), "images")]
    groups: dict[int | str, list[dict[str, Any]]] = {}
    for image in images:
        if _id(image, "id") in groups:
            raise ExchangeError(f"two images have the id {brief(image['id'])}")
        groups[image["id"]] = []
    annotations = [fields(item, "an annotation") for item in items(document.get("annotations"), "annotations")]
    for annotation in annotations:
        image_id = _id(annotation, "image_id")
        if image_id not in groups:
            raise ExchangeError(f"an annotation belongs to image {brief(image_id)}, which is not among its images")
        groups[image_id].append(annotation)

    info = document.get("info")
    about = info.get("samdeblur") if isinstance(info, dict) else None
    about = about if isinstance(about, dict) else {}
    digests = [_digest(image.get("digest")) for image in images]
    known = about.get("digest") in ("pixels", "file") and all(digests)
    by_image = list(groups.values())
    return Listing(
        [_key(image, image["id"]) for image in images],
        *sizes_of(len(images), lambda position: _size(images[position], by_image[position])),
        lambda position, shape: read_annotations(by_image[position], *shape),
        digest_kind=about["digest"] if known else "none",
        digest=digests.__getitem__ if known else lambda position: bytes(32),
        claims=about.get("recipe"),
        notes=_lost(annotations),
    )


def list_results(path: Path) -> Listing:
    """Images in the order of their first masks, named by file_name or else by image_id. Raises ExchangeError."""
    results = [fields(item, "a result") for item in items(load_json(path), "results")]
    groups: dict[int | str, list[dict[str, Any]]] = {}
    for result in results:
        groups.setdefault(_id(result, "image_id"), []).append(result)
    keys: list[str] = []
    for image_id, group in groups.items():
        names = {_key(result, image_id) for result in group}
        if len(names) > 1:
            raise ExchangeError(f"image {brief(image_id)} has two names, {' and '.join(sorted(names)[:2])}")
        keys += names
    notes = ["coco-results lists no images: those without masks are not in the store", *_lost(results)]
    by_image = list(groups.values())
    return Listing(
        keys,
        *sizes_of(len(keys), lambda position: rle_size(by_image[position])),
        lambda position, shape: read_annotations(by_image[position], *shape),
        notes=notes,
    )


def _size(image: dict[str, Any], annotations: list[dict[str, Any]]) -> tuple[int, int]:
    """Height and width as the image says them, or else its masks."""
    height, width = image.get("height"), image.get("width")
    return rle_size(annotations) if height is None and width is None else check_size(height, width)


def _image(store: MaskStore, key: str) -> dict[str, Any]:
    height, width = store.shape(key)
    image: dict[str, Any] = {"id": store.position(key) + 1, "file_name": key, "height": height, "width": width}
    return image | ({} if store.header.digest == "none" else {"digest": store.digest(key).hex()})


def _annotations(store: MaskStore, progress: Progress) -> Iterator[tuple[str, dict[str, Any]]]:
    """Key and annotation of every mask."""
    for key in store.ready_keys:
        belongs = {"image_id": store.position(key) + 1, "category_id": CATEGORY["id"]}
        for annotation in annotations_of(store.atoms(key), store.records(key)):
            yield key, belongs | annotation
        progress(1)


def _numbered(annotations: Iterator[tuple[str, dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    for number, (_, annotation) in enumerate(annotations, start=1):
        yield {"id": number, "iscrowd": 0} | annotation


def _write_items(file: TextIO, objects: Iterator[dict[str, Any]]) -> None:
    """The inside of a JSON list, a line each."""
    for number, item in enumerate(objects):
        file.write(f"{',' if number else ''}\n{json.dumps(item)}")


@contextmanager
def _whole(target: Path) -> Iterator[TextIO]:
    """A file to write to, which becomes the target when all is written."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + PARTIAL)
    try:
        with open(partial, "w", encoding="utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, target)
        fsync_path(target.parent)
    finally:
        partial.unlink(missing_ok=True)


def _id(item: dict[str, Any], name: str) -> int | str:
    value = item.get(name)
    if not isinstance(value, int | str) or isinstance(value, bool):
        raise ExchangeError(f"{name} is {brief(value)}, neither a whole number nor a text")
    return value


def _key(item: dict[str, Any], image_id: int | str) -> str:
    name = item.get("file_name", str(image_id))
    if not isinstance(name, str):
        raise ExchangeError(f"the file_name of image {brief(image_id)} is not a text")
    return nfc(name)


def _digest(value: Any) -> bytes:
    """32 bytes, or none when it is not a SHA-256 in hexadecimal."""
    try:
        digest = bytes.fromhex(value)
    except (TypeError, ValueError):
        return b""
    return digest if len(digest) == 32 else b""


def _lost(annotations: list[dict[str, Any]]) -> list[str]:
    """What annotations say that a store has no place for."""
    notes = []
    categories = {brief(annotation.get("category_id")) for annotation in annotations}
    if len(categories) > 1:
        notes.append(f"a store holds no categories: the {len(categories)} of {len(annotations)} masks are dropped")
    own = ("predicted_iou", "stability_score")
    scores = sum(item.get("score", 1) != 1 and not any(name in item for name in own) for item in annotations)
    if scores:
        notes.append(f"a store holds no plain score: those of {scores} masks are dropped")
    return notes

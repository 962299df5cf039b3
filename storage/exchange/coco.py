"""COCO's two forms of masks: `instances`, which lists images and annotations, and `results`, a list of annotations.

Both are one JSON file. It is written image by image, and read whole into memory.

The store's own fields, which COCO's tools ignore: `info.samdeblur` (dataset, split, recipe, digest), `digest` of an
image, `file_name` in results, and what Segment Anything says of a mask.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from samdeblur.storage.exchange.annotations import (
    LeftOut,
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
from samdeblur.storage.plurals import counted
from samdeblur.storage.store import MaskStore

CATEGORY = {"id": 1, "name": "mask", "supercategory": "object"}
Progress = Callable[[int], None]


def export_instances(
    store: MaskStore,
    target: Path,
    progress: Progress,
    file_name: Callable[[str], str] = lambda key: key,
    licence: str = "",
) -> list[str]:
    """Write the images of a store that are done; the file is replaced when it is there. Returns what is lost.

    Args:
        file_name: of an image; other programs look for it in a folder.
        licence: of the masks.
    """
    header = store.header
    about = {"dataset": header.dataset, "split": header.split, "recipe": header.recipe, "digest": header.digest}
    licences = [{"id": 1, "name": licence, "url": ""}] if licence else []
    with _whole(target) as file:
        file.write(f'{{"info": {_json({"description": f"{header.dataset} {header.split}", "samdeblur": about})},\n')
        file.write(f'"licenses": {_json(licences)},\n"categories": [{_json(CATEGORY)}],\n"images": [')
        _write_items(file, (_image(store, key, file_name(key), licences) for key in store.ready_keys))
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
    notes = ["coco-results holds no recipe and no digests of the images"]
    empty = sum(not store.counts[store.position(key), 0] for key in store.ready_keys)
    if empty:
        notes.append(f"coco-results lists no images: {counted(empty, 'image')} without masks left out")
    return notes


def list_instances(path: Path, left_out: LeftOut | None = None, categories: Sequence[str] = ()) -> Listing:
    """Images in file order, named by file_name or else by id.

    Args:
        left_out: takes what is of no use; without it such a file is refused.
        categories: names or ids of those whose annotations are read; all where there are none.

    Raises:
        ExchangeError: not such a file.
    """
    left_out = left_out or LeftOut(strict=True)
    document = fields(load_json(path), "the file")
    refuse_others(document)
    listed = items(document.get("images"), "images")
    annotations = items(document.get("annotations"), "annotations")
    wanted = _categories(document.get("categories"), categories)
    images: dict[str, dict[str, Any]] = {}
    ids = _Ids()
    for number, item in enumerate(listed, start=1):
        try:
            image = fields(item, "an image")
            image_id = _id(image, "id", left_out.strict)
            key = _key(image, _named(image["id"], image_id), left_out.strict)
            if key in images:
                raise ExchangeError(f"two images are named {key!r}")
        except ExchangeError as error:
            left_out.add(str(error) if left_out.strict else f"image {number} of {len(listed)}: {error}")
            continue
        images[key] = image
        ids.add(image["id"], image_id, key)
    for image_id, shared in ids.shared():
        reason = f"{' and '.join(map(repr, shared))} share the id {brief(image_id)}, so it is unknown whose masks are"
        left_out.add(reason)
        for key in shared:
            del images[key]
    by_key: dict[str, list[dict[str, Any]]] = {key: [] for key in images}
    read = []
    for number, item in enumerate(annotations, start=1):
        try:
            annotation = fields(item, "an annotation")
            image_id = _id(annotation, "image_id", left_out.strict)
            found = ids.find(annotation["image_id"], image_id)
            if found not in by_key:
                raise ExchangeError(f"an annotation belongs to image {brief(image_id)}, which is not among its images")
        except ExchangeError as error:
            left_out.add(str(error) if left_out.strict else f"annotation {number} of {len(annotations)}: {error}")
            continue
        if wanted is None or annotation.get("category_id") in wanted:
            by_key[found].append(annotation)
            read.append(annotation)

    info = document.get("info")
    about = info.get("samdeblur") if isinstance(info, dict) else None
    about = about if isinstance(about, dict) else {}
    digests = [_digest(image.get("digest")) for image in images.values()]
    known = about.get("digest") in ("pixels", "file") and all(digests)
    keys, described, by_image = list(images), list(images.values()), list(by_key.values())
    return Listing(
        keys,
        *sizes_of(len(images), lambda position: _size(described[position], by_image[position], left_out.strict)),
        lambda position, shape: read_annotations(by_image[position], *shape, left_out, keys[position]),
        digest_kind=about["digest"] if known else "none",
        digest=digests.__getitem__ if known else lambda position: bytes(32),
        claims=about.get("recipe"),
        notes=_lost(read),
    )


def list_results(path: Path, left_out: LeftOut | None = None, categories: Sequence[str] = ()) -> Listing:
    """Images in the order of their first masks, named by file_name or else by image_id. Otherwise as `list_instances`.

    Results name no categories: these are ids.
    """
    left_out = left_out or LeftOut(strict=True)
    results = items(load_json(path), "results")
    wanted = _categories([], categories)
    groups: dict[int | str, list[dict[str, Any]]] = {}
    names: dict[int | str, str] = {}
    read = []
    for number, item in enumerate(results, start=1):
        try:
            result = fields(item, "a result")
            image_id = _id(result, "image_id", left_out.strict)
            image_id = image_id if left_out.strict else _named(result["image_id"], image_id)
            key = _key(result, image_id, left_out.strict)
            if names.setdefault(image_id, key) != key:
                both = " and ".join(sorted((names[image_id], key)))
                raise ExchangeError(f"image {brief(image_id)} has two names, {both}")
        except ExchangeError as error:
            left_out.add(str(error) if left_out.strict else f"result {number} of {len(results)}: {error}")
            continue
        if wanted is None or result.get("category_id") in wanted:
            groups.setdefault(image_id, []).append(result)
            read.append(result)
    notes = ["coco-results lists no images: those without masks are not in the store", *_lost(read)]
    by_image = list(groups.values())
    keys = [names[image_id] for image_id in groups]
    return Listing(
        keys,
        *sizes_of(len(keys), lambda position: rle_size(by_image[position])),
        lambda position, shape: read_annotations(by_image[position], *shape, left_out, keys[position]),
        notes=notes,
    )


OTHERS = {  # a key that another program's file has, and what to do with it
    "shapes": "a file of Labelme; export its folder as COCO (labelme2coco, or labelme's own examples) and import that",
    "_via_img_metadata": "a project of the VGG Image Annotator; export it as COCO there and import that",
}


def refuse_others(document: dict[str, Any]) -> None:
    """Raise ExchangeError for JSON of another kind, saying what to export instead."""
    for key, advice in OTHERS.items():
        if key in document and "annotations" not in document:
            raise ExchangeError(advice)
    annotations = document.get("annotations")
    first = annotations[0] if isinstance(annotations, list) and annotations else None
    if isinstance(first, dict) and "segments_info" in first:
        raise ExchangeError(
            "COCO panoptic, whose masks lie in PNG files beside it; convert it to instances with panopticapi "
            "(panoptic2detection_coco_format) and import that"
        )


class _Ids:
    """Ids of images, which name one as they are written, or else by what they mean (1, 1.0, "1", "0001")."""

    def __init__(self) -> None:
        self._written: dict[Any, dict[str, None]] = {}
        self._meant: dict[int | str, dict[str, None]] = {}

    def add(self, written: Any, meant: int | str, key: str) -> None:
        self._written.setdefault((type(written), written), {})[key] = None
        self._meant.setdefault(meant, {})[key] = None

    def find(self, written: Any, meant: int | str) -> str:
        """The name of the image; "" for none, or several."""
        names = self._written.get((type(written), written)) or self._meant.get(meant, {})
        return next(iter(names)) if len(names) == 1 else ""

    def shared(self) -> Iterator[tuple[Any, list[str]]]:
        """Ids that more than one image has, and the names of these."""
        return ((written, list(names)) for (_, written), names in self._written.items() if len(names) > 1)


def _categories(listed: Any, wanted: Sequence[str]) -> set[Any] | None:
    """The ids that are meant; None for all. Raises ExchangeError for one that the file does not have."""
    if not wanted:
        return None
    named = [item for item in listed if isinstance(item, dict)] if isinstance(listed, list) else []
    found: set[Any] = set()
    for name in wanted:
        ids = {item.get("id") for item in named if name in (item.get("name"), str(item.get("id")))}
        if not named and name.isdecimal():
            ids = {int(name)}
        if not ids:
            there = ", ".join(str(item.get("name")) for item in named[:12])
            raise ExchangeError(f"it has no category {name!r}" + (f"; choose from {there}" if there else "; name ids"))
        found |= ids
    return found


def _size(image: dict[str, Any], annotations: list[dict[str, Any]], strict: bool) -> tuple[int, int]:
    """Height and width as the image says them, or else its masks."""
    height, width = (_number(image.get(name), strict) for name in ("height", "width"))
    return rle_size(annotations) if height is None and width is None else check_size(height, width)


def _image(store: MaskStore, key: str, file_name: str, licences: list[Any]) -> dict[str, Any]:
    height, width = store.shape(key)
    image: dict[str, Any] = {"id": store.position(key) + 1, "file_name": file_name, "height": height, "width": width}
    image |= {"license": 1} if licences else {}
    image |= {"key": key} if file_name != key else {}
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
        file.write(f"{',' if number else ''}\n{_json(item)}")


def _json(value: Any) -> str:
    """As JSON proper, in which there is no NaN and no Infinity: null stands for them."""
    try:
        return json.dumps(value, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(value), allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


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


def _id(item: dict[str, Any], name: str, strict: bool) -> int | str:
    value = _number(item.get(name), strict)
    if not isinstance(value, int | str) or isinstance(value, bool):
        raise ExchangeError(f"{name} is {brief(value)}, neither a whole number nor a text")
    return value


def _named(written: Any, meant: int | str) -> str:
    """What an id calls an image that has no other name: 0001 where that is written, not 1."""
    return written if isinstance(written, str) else str(meant)


def _number(value: Any, strict: bool) -> Any:
    """A whole number that is written as 1.0 or "1" as what it is, unless reading is strict; anything else as it is."""
    if strict:
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return int(value) if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 19 else value


def _key(item: dict[str, Any], image_id: int | str, strict: bool) -> str:
    """The name of an image; unless reading is strict without what leads out of a folder, and with / for \\."""
    name = item.get("key", item.get("file_name", str(image_id)))
    if not isinstance(name, str):
        raise ExchangeError(f"the file_name of image {brief(image_id)} is not a text")
    if strict:
        return name
    return "/".join(part for part in name.replace("\\", "/").split("/") if part not in ("", ".", "..")) or str(image_id)


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
        notes.append(f"a store holds no categories: those of {counted(len(annotations), 'mask')} are dropped")
    own = ("predicted_iou", "stability_score")
    scores = sum(item.get("score", 1) != 1 and not any(name in item for name in own) for item in annotations)
    if scores:
        notes.append(f"a store holds no plain score: those of {counted(scores, 'mask')} are dropped")
    return notes

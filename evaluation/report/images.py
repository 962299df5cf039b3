"""Images beside a report: a thumbnail of every result, and everything of the images that are shown in full.

Below the folder of the report:

    thumbnails/SET/KEY.jpg                      the result, small
    thumbnails/SET/KEY.strip.jpg                blurred, result and sharp, beside each other, of the best, the worst and
                                                one in the middle; while an evaluation runs, of all
    images/SET/KEY.{blurred,result,sharp}.png as they are, pixel for pixel
    images/SET/KEY.masks.js                   keepMasks({...}), the masks and their records

Pages opened from a disk may show images beside them and run scripts beside them, and may not read either. So masks
are a script that hands over its data.
"""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from samdeblur.storage import AtomMap
from samdeblur.storage.files import PARTIAL, fsync_path, write_durably
from samdeblur.storage.names import file_name
from samdeblur.storage.sharing.view import masks_by_atom, rounded_rows

THUMBNAIL_SIDE = 160  # pixels
THUMBNAIL_QUALITY = 72
STRIP_SIDE, STRIP_QUALITY = 384, 82  # of each image of a strip
FILES = {"blurred": ".blurred.png", "result": ".result.png", "sharp": ".sharp.png", "masks": ".masks.js"}

ImageArray = NDArray[np.uint8]


def keep_thumbnail(folder: Path, name: str, key: str, result: ImageArray) -> None:
    """Keep a result, (H, W, 3) uint8, as a JPEG of at most THUMBNAIL_SIDE pixels a side.

    Args:
        folder: of the report.
        name: of the set.
    """
    write_durably(thumbnail_path(folder, name, key), encode_thumbnail(result))


def read_thumbnail(folder: Path, name: str, key: str) -> bytes | None:
    """The bytes of the JPEG; None where there is none."""
    try:
        return thumbnail_path(folder, name, key).read_bytes()
    except FileNotFoundError:
        return None


def keep_strip(folder: Path, name: str, key: str, *sides: ImageArray | None) -> None:
    """Keep the sides of one image, (H, W, 3) uint8, beside each other in one small JPEG; None leaves one out."""
    write_durably(strip_path(folder, name, key), encode_strip([side for side in sides if side is not None]))


def read_strip(folder: Path, name: str, key: str) -> bytes | None:
    """The bytes of the JPEG; None where there is none."""
    try:
        return strip_path(folder, name, key).read_bytes()
    except FileNotFoundError:
        return None


def keep_images(
    folder: Path,
    name: str,
    key: str,
    blurred: ImageArray,
    result: ImageArray,
    sharp: ImageArray | None,
    atoms: AtomMap | None,
    records: Mapping[str, ArrayLike] | None,
) -> None:
    """Keep all of an image; what an earlier evaluation kept of it is replaced or removed.

    Args:
        folder: of the report.
        name: of the set.
        blurred, result, sharp: (H, W, 3) uint8.
        atoms: masks of the whole image.
        records: column -> (M,), what is known of each mask.
    """
    contents = {"blurred": encode_png(blurred), "result": encode_png(result)}
    if sharp is not None:
        contents["sharp"] = encode_png(sharp)
    if atoms is not None:
        contents["masks"] = encode_masks(atoms, records or {})
    for kind in FILES:
        path = shown_path(folder, name, key, kind)
        if kind in contents:
            write_durably(path, contents[kind])
        else:
            path.unlink(missing_ok=True)


def kept_images(folder: Path, name: str, key: str) -> dict[str, Path]:
    """Files of an image by the names of FILES; empty unless at least the blurred image and the result are there."""
    paths = {kind: shown_path(folder, name, key, kind) for kind in FILES}
    found = {kind: path for kind, path in paths.items() if path.is_file()}
    return found if {"blurred", "result"} <= found.keys() else {}


def forget_images(
    folder: Path, name: str, shown: Collection[str], thumbnails: Collection[str], strips: Collection[str] = ()
) -> None:
    """Remove what an earlier evaluation of a set left of other images than these, by key."""
    wanted = {shown_path(folder, name, key, kind) for key in shown for kind in FILES}
    wanted |= {thumbnail_path(folder, name, key) for key in thumbnails}
    wanted |= {strip_path(folder, name, key) for key in strips}
    for place in (_images_folder(folder, name), thumbnail_path(folder, name, "").parent):
        for path in place.glob("*"):
            if path not in wanted:
                path.unlink(missing_ok=True)


def forget_sets(folder: Path, names: Collection[str]) -> None:
    """Remove the images of other sets than these, which an earlier evaluation left."""
    for place in ("images", "thumbnails"):
        for path in (folder / place).glob("*"):
            if path.name not in {file_name(name) for name in names}:
                shutil.rmtree(path, ignore_errors=True)


def borrow_image(source: Path, target: Path) -> None:
    """The same file in another folder: a second name of it where the disk allows, else a copy."""
    if target.exists() and target.samefile(source):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + PARTIAL)
    partial.unlink(missing_ok=True)
    try:
        os.link(source, partial)
    except OSError:
        shutil.copyfile(source, partial)
        fsync_path(partial)
    os.replace(partial, target)


def shown_path(folder: Path, name: str, key: str, kind: str, number: int | None = None) -> Path:
    """Where one of the files of an image is; `kind` one of FILES, `number` that of a network among several."""
    ending = FILES[kind] if number is None else FILES[kind].replace(kind, f"{kind}-{number}")
    return _images_folder(folder, name) / f"{file_name(key)}{ending}"


def thumbnail_path(folder: Path, name: str, key: str) -> Path:
    return folder / "thumbnails" / file_name(name) / f"{file_name(key)}.jpg"


def strip_path(folder: Path, name: str, key: str) -> Path:
    return thumbnail_path(folder, name, key).with_suffix(".strip.jpg")


def _images_folder(folder: Path, name: str) -> Path:
    return folder / "images" / file_name(name)


def encode_thumbnail(result: ImageArray) -> bytes:
    image = Image.fromarray(result)
    image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=THUMBNAIL_QUALITY, optimize=True)
    return buffer.getvalue()


def encode_strip(images: Sequence[ImageArray]) -> bytes:
    """Images of one size as one JPEG, from left to right, each at most STRIP_SIDE pixels a side."""
    height, width = images[0].shape[:2]
    scale = min(1.0, STRIP_SIDE / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = [cv2.resize(one, size, interpolation=cv2.INTER_AREA) for one in images]
    buffer = io.BytesIO()
    Image.fromarray(np.hstack(small)).save(buffer, "JPEG", quality=STRIP_QUALITY, optimize=True)
    return buffer.getvalue()


def encode_png(image: ImageArray) -> bytes:
    """An (H, W, 3) uint8 RGB image as PNG, fast rather than small."""
    done, data = cv2.imencode(".png", image[..., ::-1])
    if not done:
        raise ValueError(f"an image of shape {image.shape} cannot be encoded as PNG")
    return data.tobytes()


def encode_masks(atoms: AtomMap, records: Mapping[str, ArrayLike]) -> bytes:
    """The script with the masks of an image, ASCII.

    It calls keepMasks with: `size`, width and height; `runs`, atoms and lengths of the runs of equal pixels in raster
    order; `atoms`, for each atom 0..K the masks that cover it, the smallest first; `columns`, names of the records;
    `records`, their values for each mask, null where there is none.
    """
    plane = atoms.atoms.ravel()
    starts = np.concatenate([[0], np.flatnonzero(plane[1:] != plane[:-1]) + 1]) if plane.size else np.zeros(0, int)
    lengths = np.diff(starts, append=plane.size)
    table = np.stack([np.asarray(values, float) for values in records.values()], axis=1) if records else None
    data: dict[str, Any] = {
        "size": atoms.shape[::-1],
        "runs": [plane[starts].tolist(), lengths.tolist()],
        "atoms": masks_by_atom(atoms),
        "columns": list(records),
        "records": rounded_rows(table) if table is not None else [[]] * atoms.n_masks,
    }
    return f"keepMasks({json.dumps(data, separators=(',', ':'), allow_nan=False)});\n".encode()


def address(path: Path, folder: Path) -> str:
    """A file below a folder as a relative web address."""
    return "/".join(quote(part, safe="") for part in path.relative_to(folder).parts)

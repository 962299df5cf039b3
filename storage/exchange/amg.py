"""What Segment Anything's own `scripts/amg.py` writes, for every image by itself.

Either a folder with a black and white PNG per mask (`0.png`, `1.png`, ...) and what is known of them in `metadata.csv`,
or, with `--convert-to-rle`, a JSON list of annotations. The scripts of MobileSAM and SAM-HQ write the same.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from io import TextIOWrapper
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samdeblur.storage.atoms import AtomMap
from samdeblur.storage.exchange.annotations import (
    LeftOut,
    Listing,
    Records,
    items,
    list_files,
    load_json,
    read_annotations,
    rle_size,
    stack_masks,
)
from samdeblur.storage.exchange.released import open_grey
from samdeblur.storage.exchange.rle import ExchangeError, brief, check_size
from samdeblur.storage.files import open_regular
from samdeblur.storage.listing import counts, files_in

TABLE = "metadata.csv"
LIST = ".json"
COLUMNS = {  # of the table: of a store
    "predicted_iou": "predicted_iou",
    "stability_score": "stability_score",
    "point_input_x": "point_x",
    "point_input_y": "point_y",
    "crop_box_x0": "crop_box_x",
    "crop_box_y0": "crop_box_y",
    "crop_box_w": "crop_box_w",
    "crop_box_h": "crop_box_h",
}


def list_amg(folder: Path, left_out: LeftOut | None = None) -> Listing:
    """Every folder of numbered masks and every .json file in a folder, sorted by name; `left_out` takes bad masks."""
    folders = {path.relative_to(folder).as_posix(): path for path in mask_folders(folder)}
    lists = {name[: -len(LIST)]: path for name, path in files_in(folder) if name.lower().endswith(LIST)}
    if twice := sorted(folders.keys() & lists.keys()):
        raise ExchangeError(f"{twice[0]} and {twice[0]}{LIST} are of one image; keep one of them")
    return list_files(
        folders | lists,
        _size,
        lambda path, shape: _read(path, shape, left_out),
        ("amg holds no recipe and no digests of the images",),
    )


def mask_folders(folder: Path) -> Iterator[Path]:
    """The folders that hold the masks of one image: their names count up from 0.png, or a table is there."""
    for path in sorted({path.parent for _, path in files_in(folder)}):
        if is_table(path / TABLE) or numbered(path):
            if path == folder:
                raise ExchangeError("it holds the masks of one image; name the folder above it")
            yield path


def is_table(path: Path) -> bool:
    """Whether a file is a table of masks, by its first line."""
    try:
        with TextIOWrapper(open_regular(path), encoding="utf-8-sig", newline="") as file:
            return {"id", "predicted_iou"} <= set(file.readline(4096).strip().split(","))
    except (OSError, UnicodeDecodeError):
        return False


def numbered(folder: Path) -> list[Path]:
    """0.png, 1.png, ... in a folder where these are all the PNG files there are; else nothing."""
    names = {path.name for path in _images(folder)}
    wanted = [f"{number}.png" for number in range(len(names))]
    return [folder / name for name in wanted] if names == set(wanted) else []


def _images(folder: Path) -> list[Path]:
    try:
        return [path for path in folder.iterdir() if path.suffix.lower() == ".png" and counts(path.name)]
    except OSError as error:
        raise ExchangeError(f"cannot be read ({error.strerror})") from error


def is_list(path: Path) -> bool:
    """Whether a file is a JSON list."""
    with open_regular(path) as file:
        return file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")


def _size(path: Path) -> tuple[int, int]:
    if path.is_file():
        return rle_size(items(load_json(path), "its masks"))
    rows = _rows(path)
    if not rows:
        raise LookupError("no mask of it was found, and nothing else says how large the image is")
    return _mask_size(path, rows[0])


def _read(path: Path, shape: tuple[int, int], left_out: LeftOut | None) -> tuple[AtomMap, Records]:
    if path.is_file():
        return read_annotations(items(load_json(path), "its masks"), *shape, left_out, path.name)
    rows = _rows(path)
    records = {column: np.array([_number(row.get(name), name) for row in rows]) for name, column in COLUMNS.items()}
    return stack_masks((_mask(path, row, shape) for row in rows), len(rows), shape), records


def _rows(folder: Path) -> list[dict[str, str]]:
    """What is said of each mask, in the order of their numbers: nothing but the number where there is no table."""
    there = {path.stem for path in _images(folder)}
    try:
        with TextIOWrapper(open_regular(folder / TABLE), encoding="utf-8-sig", newline="") as file:
            rows = [{name or "": value or "" for name, value in row.items()} for row in csv.DictReader(file)]
    except FileNotFoundError:
        rows = [{"id": path.stem} for path in numbered(folder)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ExchangeError(f"{TABLE} cannot be read ({error})") from error
    numbers = [row.get("id", "") for row in rows]
    if not all(number.isascii() and number.isdecimal() for number in numbers) or len(set(numbers)) < len(numbers):
        raise ExchangeError(f"{TABLE}: its ids are not numbers, or some are there twice")
    for number in sorted({*numbers} ^ there):
        missing = f"{number}.png is missing" if number in numbers else f"{number}.png is not in {TABLE}"
        raise ExchangeError(f"{missing}: the masks and their table do not belong together")
    return sorted(rows, key=lambda row: int(row["id"]))


def _mask_size(folder: Path, row: dict[str, str]) -> tuple[int, int]:
    with open_grey(folder / f"{row['id']}.png", ("1", "L")) as image:
        return check_size(image.height, image.width)


def _mask(folder: Path, row: dict[str, str], shape: tuple[int, int]) -> NDArray[np.bool_]:
    name = f"{row['id']}.png"
    with open_grey(folder / name, ("1", "L")) as image:
        if (image.height, image.width) != shape:
            raise ExchangeError(f"{name} is {image.width}x{image.height}, others are {shape[1]}x{shape[0]}")
        try:
            plane: NDArray[Any] = np.asarray(image)
        except (OSError, SyntaxError, ValueError) as error:
            raise ExchangeError(f"{name}: a PNG that is cut off or damaged") from error
    mask = plane != 0
    if (plane[mask] != plane.max(initial=0)).any():
        raise ExchangeError(f"{name} is not a mask: it has more values than black and white")
    return mask


def _number(text: str | None, name: str) -> float:
    if not text:
        return np.nan
    try:
        return float(text)
    except ValueError as error:
        raise ExchangeError(f"{TABLE}: its {name} is {brief(text)}, not a number") from error

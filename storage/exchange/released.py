"""The masks that the released SAM-Deblur code reads: grey PNG files, or NPZ files of groups of pixels.

Neither says more of a mask than its pixels. Both are made of sums of Segment Anything's masks, so the masks do not
overlap; those that did are in pieces, each a mask of its own.

Shapes: H W pixels, G groups.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray
from PIL import Image

from samdeblur.storage.atoms import AtomMap, TooManyAtoms
from samdeblur.storage.exchange.annotations import Listing, Records, list_folder, stack_masks
from samdeblur.storage.exchange.rle import ExchangeError, brief, check_size
from samdeblur.storage.format.layout import MAX_RECORDS

MEMBER = "masks.npy"
MAX_UNORDERED = 1 << 30  # bytes of masks in Fortran order, which cannot be read one by one


def list_grey(folder: Path) -> Listing:
    """8-bit grey PNG files; each value but 0 is a mask, in ascending order."""
    note = "grey-png holds no overlapping masks: where masks overlapped, each part is a mask of its own"
    return list_folder(folder, ".png", _grey_size, _read_grey, (note,))


def list_npz(folder: Path) -> Listing:
    """NPZ files with an array `masks`, (G, H, W) or (G, 1, H, W) bool; each group is a mask, the background too."""
    note = "npz does not tell the background from masks: every group is a mask"
    return list_folder(folder, ".npz", _npz_size, _read_npz, (note,))


def _grey_size(path: Path) -> tuple[int, int]:
    with open_grey(path) as image:
        return check_size(image.height, image.width)


def _read_grey(path: Path, shape: tuple[int, int]) -> tuple[AtomMap, Records]:
    with open_grey(path) as image:
        try:
            plane = np.array(image)
        except (OSError, SyntaxError, ValueError) as error:
            raise ExchangeError("a PNG that is cut off or damaged") from error
    values = np.flatnonzero(np.bincount(plane.ravel(), minlength=256)[1:]) + 1
    return stack_masks((plane == value for value in values), len(values), shape), {}


def open_grey(path: Path, modes: tuple[str, ...] = ("L",)) -> Image.Image:
    """A PNG of one of Pillow's modes for grey images. Raises ExchangeError."""
    try:
        image = Image.open(path, formats=["PNG"])
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ExchangeError("not a PNG file that can be read") from error
    if image.mode not in modes:
        image.close()
        raise ExchangeError(f"a PNG of pixel format {image.mode}, not 8-bit grey")
    return image


def _npz_size(path: Path) -> tuple[int, int]:
    with _open_npz(path) as (_, (_, height, width), _):
        return height, width


def _read_npz(path: Path, shape: tuple[int, int]) -> tuple[AtomMap, Records]:
    with _open_npz(path) as (file, (groups, _, _), unordered):
        if groups > MAX_RECORDS:
            raise TooManyAtoms(f"{groups} masks; a store holds at most {MAX_RECORDS} per image")
        planes = _unordered(file, groups, shape) if unordered else _ordered(file, groups, shape)
        return stack_masks(planes, groups, shape), {}


@contextmanager
def _open_npz(path: Path) -> Iterator[tuple[IO[bytes], tuple[int, int, int], bool]]:
    """The file at its first pixel, (G, H, W), and whether it is in Fortran order; nothing of that size is allocated.

    Raises:
        ExchangeError: not an NPZ of boolean masks, or damaged; also for what is found so while it is read.
    """
    try:
        with zipfile.ZipFile(path) as archive, archive.open(MEMBER) as file:
            shape, unordered, dtype = _header(file)
            if dtype != np.bool_:
                raise ExchangeError(f"its masks are of type {dtype}, not bool")
            if len(shape) not in (3, 4) or shape[1:-2] not in ((), (1,)):
                raise ExchangeError(f"its masks have {len(shape)} axes {brief(shape)}, not (G, H, W) or (G, 1, H, W)")
            groups, (height, width) = shape[0], shape[-2:]
            check_size(height, width)
            if groups < 0 or archive.getinfo(MEMBER).file_size != file.tell() + groups * height * width:
                raise ExchangeError("its masks are cut off, or not as many as it says")
            yield file, (groups, height, width), unordered
    except (ExchangeError, TooManyAtoms):
        raise
    except KeyError as error:
        raise ExchangeError(f"no array named {MEMBER.removesuffix('.npy')} in it") from error
    except (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise ExchangeError(f"not an NPZ file that can be read ({error})") from error


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether in Fortran order, and type, as an NPY file says. A header of version 1.0 has at most 64 KiB."""
    if npy.read_magic(file) != (1, 0):
        raise ExchangeError("its masks are not in version 1.0 of NPY, which numpy writes booleans in")
    try:
        return npy.read_array_header_1_0(file)
    except Exception as error:  # whatever Python's own parser raises goes through numpy
        raise ExchangeError("the header of its masks is damaged") from error


def _ordered(file: IO[bytes], groups: int, shape: tuple[int, int]) -> Iterator[NDArray[np.bool_]]:
    for _ in range(groups):
        yield np.frombuffer(file.read(shape[0] * shape[1]), np.uint8).reshape(shape) != 0


def _unordered(file: IO[bytes], groups: int, shape: tuple[int, int]) -> NDArray[np.bool_]:
    size = groups * shape[0] * shape[1]
    if size > MAX_UNORDERED:
        raise ExchangeError("its masks are in Fortran order and too large to be put in order; save them as C order")
    return np.frombuffer(file.read(size), np.uint8).reshape(*shape[::-1], groups).T != 0

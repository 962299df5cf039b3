"""Photographs as people have them, and files of them: 8 or 16 bits, upright, with their colour profile and EXIF.

Where `decode` refuses what a dataset must not hold, this takes what a camera writes: images of 16 bits, and the first
of several in a file.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.ImageFile import ImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import BITSPERSAMPLE, SAMPLEFORMAT, TiffImageFile

from samdeblur.storage.decode import (
    FLOATING,
    ORIENTATION,
    PNG_BITS,
    BadImage,
    opaque,
    opened,
    orientation_of,
    upright,
    upright_shape,
)

# Form -> suffix of its files.
FORMS: Mapping[str, str] = {"png": ".png", "jpg": ".jpg", "webp": ".webp"}
WEBP_SIDE = 16383  # pixels
COLOUR_SPACE = slice(16, 20)  # of an ICC profile

Pixels = NDArray[np.uint8] | NDArray[np.uint16]


@dataclass(frozen=True)
class Photo:
    """A photograph.

    Attributes:
        pixels: (H, W, 3) RGB, uint8 or uint16, upright.
        profile: ICC profile of the pixels; empty for none.
        exif: EXIF without its orientation, which the pixels have; empty for none.
        notes: what a person should know of it.
    """

    pixels: Pixels
    profile: bytes = b""
    exif: bytes = b""
    notes: tuple[str, ...] = ()


def read_photo(path: Path) -> Photo:
    """Raises BadImage, from the OSError when the disk gave one."""
    with opened(path) as (image, header):
        upright_shape(image)
        count = getattr(image, "n_frames", 1)
        several = count > 1 and image.format != "MPO"  # a JPEG with a preview or a depth map behind it
        notes = (f"the first of {count} images in the file",) if several else ()
        profile, exif = _profile(image), _exif(image)
        if _bits(image, header) > 8:
            return Photo(_deep(path, orientation_of(image)), profile, exif, notes)
        return Photo(np.array(opaque(upright(image))), profile, exif, notes)


def as_8_bits(pixels: Pixels) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 or uint16 to uint8, rounded."""
    return ((pixels.astype(np.uint32) + 128) // 257 if pixels.dtype == np.uint16 else pixels).astype(
        np.uint8, copy=False
    )


def encode_photo(photo: Photo, form: str, quality: int = 95) -> bytes:
    """The bytes of a file.

    Args:
        form: a key of FORMS. Only PNG holds 16 bits; others get 8.
        quality: of jpg and webp, 1 to 100.

    Raises:
        BadImage: an image that is too large for the form.
    """
    if form == "png":
        done, data = cv2.imencode(".png", photo.pixels[..., ::-1])
        if not done:
            raise BadImage("cannot be encoded as PNG")
        profile = b"ICC\0\0" + zlib.compress(photo.profile) if photo.profile else b""
        return _with_chunks(data.tobytes(), {b"iCCP": profile, b"eXIf": photo.exif})
    height, width = photo.pixels.shape[:2]
    if form == "webp" and max(height, width) > WEBP_SIDE:
        raise BadImage(f"{width}x{height} pixels; WebP takes at most {WEBP_SIDE} on a side, --format png takes more")
    options: dict[str, Any] = (
        {"format": "WEBP", "method": 4} if form == "webp" else {"format": "JPEG", "subsampling": 0}
    )
    buffer = io.BytesIO()
    exif = b"Exif\0\0" + photo.exif if photo.exif else b""
    if form == "jpg" and len(exif) > 65000:
        exif = b""
    Image.fromarray(as_8_bits(photo.pixels)).save(
        buffer, quality=quality, icc_profile=photo.profile, exif=exif, **options
    )
    return buffer.getvalue()


def _bits(image: ImageFile, header: bytes) -> int:
    """Bits per channel. Raises BadImage for values that are not whole numbers."""
    if isinstance(image, TiffImageFile):
        if FLOATING in image.tag_v2.get(SAMPLEFORMAT, ()):
            raise BadImage("floating-point pixels; convert it to 8 or 16 bits per channel")
        return int(max(image.tag_v2.get(BITSPERSAMPLE, (1,))))
    if isinstance(image, PngImageFile):
        return header[PNG_BITS]
    return 16 if image.mode.startswith("I") else 8


def _deep(path: Path, orientation: int) -> Pixels:
    """An image of more than 8 bits, which Pillow would cut to 8."""
    found = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    if found is None or found.dtype != np.uint16:
        raise BadImage(
            "more than 8 bits per channel, in a pixel format that is not read; convert it to a PNG of 16 bits"
        )
    if found.ndim == 2:
        found = np.stack([found] * 3, axis=2)
    elif found.shape[2] == 4:
        if found[..., 3].min() < np.iinfo(np.uint16).max:
            raise BadImage("transparent pixels; convert it to RGB without alpha")
        found = found[..., :3]
    turned = found[..., ::-1]
    if orientation >= 5:
        turned = turned.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        turned = turned[::-1]
    if orientation in (2, 3, 6, 7):
        turned = turned[:, ::-1]
    return np.ascontiguousarray(turned)


def _profile(image: ImageFile) -> bytes:
    """The profile, if it is one of RGB: that of a grey image does not fit the result."""
    profile = image.info.get("icc_profile") or b""
    return profile if profile[COLOUR_SPACE] == b"RGB " else b""


def _exif(image: ImageFile) -> bytes:
    with suppress(Exception):  # damaged EXIF raises nearly anything, and is no reason to do without the image
        exif = image.getexif() if not isinstance(image, TiffImageFile) else None  # whose tags describe the file itself
        if exif:
            exif.pop(ORIENTATION, None)
            return bytes(exif.tobytes().removeprefix(b"Exif\0\0")) if exif else b""
    return b""


def _with_chunks(png: bytes, chunks: Mapping[bytes, bytes]) -> bytes:
    """A PNG with more chunks behind its header; empty ones are left out."""
    start = 8 + 25  # signature, IHDR
    made = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks.items()
        if data
    ]
    return b"".join([png[:start], *made, png[start:]])

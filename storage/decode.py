"""Image files to pixels: what an 8-bit PNG, JPEG, BMP, TIFF, WebP, GIF or PPM file shows, as 8-bit RGB.

Nothing is lost silently: other forms, more than 8 bits, transparency and further images in the file are refused. Size
and form are judged by the header, before anything is decoded.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import jpeg_factory
from PIL.PngImagePlugin import PngImageFile
from PIL.PpmImagePlugin import PpmImageFile
from PIL.TiffImagePlugin import (
    BITSPERSAMPLE,
    EXTRASAMPLES,
    IMAGELENGTH,
    IMAGEWIDTH,
    SAMPLEFORMAT,
    ImageFileDirectory_v2,
    TiffImageFile,
)
from PIL.WebPImagePlugin import WebPImageFile

from samdeblur.storage.files import open_regular
from samdeblur.storage.format.layout import MAX_PIXELS, MAX_SIDE
from samdeblur.storage.metadata import without_metadata

# First bytes -> reader. `Image.open` would try every format it knows, and warn of sizes that a store takes.
READERS = {
    b"\x89PNG\r\n\x1a\n": PngImageFile,
    b"\xff\xd8\xff": jpeg_factory,
    b"BM": BmpImageFile,
    b"II*\0": TiffImageFile,
    b"MM\0*": TiffImageFile,
    b"II+\0": TiffImageFile,
    b"MM\0+": TiffImageFile,
    b"RIFF": WebPImageFile,
    b"GIF8": GifImageFile,
    **{b"P%d" % kind: PpmImageFile for kind in range(1, 7)},
}
FORMS = "PNG, JPEG, BMP, TIFF, WebP, GIF or PPM"

HEADER_BYTES = 32
PNG_BITS = 24  # where a PNG says its bits per channel
ORIENTATION = 274  # a tag of TIFF and EXIF
LONG = 4  # type of a value of EXIF; that of an orientation should be a SHORT
SIGNED, FLOATING = 2, 3  # of SAMPLEFORMAT
UNSPECIFIED = 0  # of EXTRASAMPLES
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# What a file says beside its pixels (text, profiles, XMP) never costs these: it is read up to here, or left out.
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = 1 << 26
MAX_FILE = 1 << 30  # bytes of a file that is read again without it

# Pillow's own limit is a third of ours, and it warns; it belongs to the whole process.
if Image.MAX_IMAGE_PIXELS is not None:
    Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, MAX_PIXELS)


class BadImage(ValueError):
    """An image that cannot be used; the rest of its dataset can."""


def read_image(path: Path) -> NDArray[np.uint8]:
    """Decode an image to (H, W, 3) uint8 RGB, upright. Raises BadImage, from the OSError when the disk gave one."""
    with opened(path) as (image, header):
        upright_shape(image)
        _refuse_depth(image, header)
        if (count := getattr(image, "n_frames", 1)) > 1:
            raise BadImage(f"{count} images in one file, animated or of several pages; keep one of them")
        return np.array(opaque(upright(image)))


def image_shape(path: Path) -> tuple[int, int]:
    """Height and width of an image, upright, from its header alone. Raises BadImage as `read_image` does."""
    with opened(path) as (image, _):
        return upright_shape(image)


@contextmanager
def opened(path: Path) -> Iterator[tuple[ImageFile, bytes]]:
    """An image whose header was read, and its first bytes. What goes wrong until it is closed is said of its file."""
    try:
        with open_regular(path) as file:
            header = file.read(HEADER_BYTES)
            file.seek(0)
            image = _reader(file, header)
            _scale_transparency(image)
            yield image, header
    except BadImage as error:
        raise BadImage(f"{path}: {error}") from error
    except OSError as error:
        raise BadImage(f"{path}: {error.strerror or str(error).rstrip('.')}") from error
    except Exception as error:  # readers raise nearly anything on damaged files
        raise BadImage(f"{path}: cannot be decoded: {str(error) or type(error).__name__}") from error


def _reader(file: IO[bytes], header: bytes) -> ImageFile:
    reader = next((reader for start, reader in READERS.items() if header.startswith(start)), None)
    if reader is None or (reader is WebPImageFile and header[8:12] != b"WEBP"):
        raise BadImage("not an image" + (f" in {FORMS}; convert it to PNG" if header else ": the file is empty"))
    try:
        return reader(file)
    except OSError:
        raise
    except Exception as error:  # readers raise nearly anything on damaged files
        if reader is TiffImageFile:  # it may be one of floats, which Pillow knows for grey alone
            tags = _tiff_tags(file, header)
            _refuse_tiff_depth(tags)
            _refuse_tiff_channels(tags)
        file.seek(0)
        data = file.read(MAX_FILE)
        bare = without_metadata(data)
        if len(bare) == len(data):
            raise
        with suppress(Exception):
            return reader(io.BytesIO(bare))
        raise error


def _scale_transparency(image: ImageFile) -> None:
    """Give the transparent value of a grey PNG in 8 bits: of 2 and 4 bits Pillow scales the pixels alone."""
    scale = {"L;2": 85, "L;4": 17}.get(str(image.tile[0].args)) if isinstance(image, PngImageFile) else None
    if scale and "transparency" in image.info:
        image.info["transparency"] *= scale


def upright_shape(image: ImageFile) -> tuple[int, int]:
    """Height and width, upright. Raises BadImage for a size that no store takes."""
    width, height = image.size
    if isinstance(image, TiffImageFile):  # versions of Pillow differ in when they turn its size
        width, height = image.tag_v2[IMAGEWIDTH], image.tag_v2[IMAGELENGTH]
    if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
        raise BadImage(f"{width}x{height} pixels; at most {MAX_SIDE} on a side and {MAX_PIXELS} in all are taken")
    return (width, height) if orientation_of(image) >= 5 else (height, width)


def _refuse_depth(image: ImageFile, header: bytes) -> None:
    """Raises BadImage for more than 8 bits; Pillow decodes such colours to 8 bits without a word."""
    if isinstance(image, TiffImageFile):
        _refuse_tiff_depth(image.tag_v2)
    elif isinstance(image, PngImageFile) and header[PNG_BITS] > 8:
        raise BadImage(f"{header[PNG_BITS]} bits per channel; convert it to 8-bit RGB")
    elif isinstance(image, PpmImageFile) and (levels := _ppm_levels(image)) != 255:
        raise BadImage(f"values up to {levels}, not up to 255; convert it to 8-bit RGB")


def _ppm_levels(image: PpmImageFile) -> int:
    """The highest value of a PPM; Pillow scales others than 255."""
    options = image.tile[0].args
    return int(options[1]) if isinstance(options, tuple) and isinstance(options[1], int) and image.mode != "1" else 255


def _refuse_tiff_depth(tags: ImageFileDirectory_v2) -> None:
    if FLOATING in tags.get(SAMPLEFORMAT, ()):
        raise BadImage("floating-point pixels; convert it to 8-bit RGB")
    if (bits := max(tags.get(BITSPERSAMPLE, (1,)))) > 8:
        raise BadImage(f"{bits} bits per channel; convert it to 8-bit RGB")


def _refuse_tiff_channels(tags: ImageFileDirectory_v2) -> None:
    """Raises BadImage for what Pillow takes for other numbers, or leaves out, without a word."""
    if SIGNED in tags.get(SAMPLEFORMAT, ()):
        raise BadImage("signed pixel values; convert it to 8-bit RGB")
    if UNSPECIFIED in tags.get(EXTRASAMPLES, ()):
        raise BadImage("extra channels of unknown meaning; convert it to RGB without them")


def _tiff_tags(file: IO[bytes], header: bytes) -> ImageFileDirectory_v2:
    tags = ImageFileDirectory_v2(header[: 16 if header[2:4] in (b"+\0", b"\0+") else 8])
    file.seek(tags.next)
    tags.load(file)
    return tags


def orientation_of(image: ImageFile) -> int:
    """1 to 8, as EXIF numbers them; 1 where nothing is said, or what is said is damaged."""
    if isinstance(image, TiffImageFile):
        found = image.tag_v2.get(ORIENTATION, 1)
        return found if found in UPRIGHT else 1
    exif = image.info.get("exif", b"").removeprefix(b"Exif\0\0")
    order: Literal["little", "big"] = "little" if exif.startswith(b"II") else "big"

    def number(start: int, size: int) -> int:
        return int.from_bytes(exif[start : start + size], order)

    entries = number(4, 4) + 2
    for entry in range(entries, entries + 12 * number(entries - 2, 2), 12):
        if number(entry, 2) == ORIENTATION:
            found = number(entry + 8, 4 if number(entry + 2, 2) == LONG else 2)
            return found if found in UPRIGHT else 1
    return 1


def upright(image: ImageFile) -> Image.Image:
    """The decoded image, turned as its orientation says. Raises BadImage for channels that would be lost in it."""
    if isinstance(image, TiffImageFile):
        _refuse_tiff_channels(image.tag_v2)
    image.info.pop("xmp", None)  # where Pillow looks for another word on the orientation
    turn = UPRIGHT.get(orientation_of(image))
    image.load()
    return image if turn is None or isinstance(image, TiffImageFile) else image.transpose(turn)  # Pillow turns TIFF


def opaque(image: Image.Image) -> Image.Image:
    """The image in RGB, without its alpha. Raises BadImage where that would lose something."""
    if image.mode == "RGBa":  # colours multiplied by alpha
        image = image.convert("RGBA")
    if image.mode in ("RGB", "L", "P", "1") and "transparency" in image.info:
        image = image.convert("RGBA")
    if image.mode in ("RGBA", "LA") and image.getchannel("A").getextrema() != (255, 255):
        raise BadImage("transparent pixels; convert it to RGB without alpha")
    if image.mode not in ("RGB", "RGBA", "L", "LA", "P", "1"):
        raise BadImage(f"pixel format {image.mode}; convert it to 8-bit RGB")
    return image if image.mode == "RGB" else image.convert("RGB")

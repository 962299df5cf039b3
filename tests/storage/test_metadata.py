"""What a file says beside its pixels never costs them: large, damaged, or more of it than fits into memory."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from samdeblur.storage.decode import BadImage, image_shape, read_image
from samdeblur.storage.metadata import without_metadata
from samdeblur.storage.photos import encode_photo, read_photo

MB = 1 << 20
PIXELS = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
NOISE = np.random.default_rng(1).bytes(2 * MB)
XMP = b"XML:com.adobe.xmp\0"
EXIF = b"Exif\0\0II*\0\x08\0\0\0\0\0"


def encoded(form, **options):
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, form, **options)
    return buffer.getvalue()


def png(*chunks, end=False):
    """A PNG with chunks (name, content) right after its header, or right before its end."""
    plain = encoded("PNG")
    at = len(plain) - 12 if end else 33
    return plain[:at] + b"".join(map(chunk, chunks)) + plain[at:]


def chunk(named):
    name, content = named
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def jpeg(*segments):
    """A JPEG with segments (marker, content) right after its start."""
    plain = encoded("JPEG", quality=95)
    made = [b"\xff" + bytes([kind]) + struct.pack(">H", len(content) + 2) + content for kind, content in segments]
    return plain[:2] + b"".join(made) + plain[2:]


def in_parts(head, content, numbered=False, size=65000):
    parts = [content[start : start + size] for start in range(0, len(content), size)]
    numbers = [bytes([number + 1, len(parts)]) if numbered else b"" for number in range(len(parts))]
    return [head + number + part for number, part in zip(numbers, parts, strict=True)]


def tags(values):
    directory = ImageFileDirectory_v2()
    for tag, value in values.items():
        directory[tag] = value
    return directory


FILES = {
    "PNG, text": lambda: png((b"tEXt", b"Comment\0" + b"x" * 2 * MB)),
    "PNG, text behind the pixels": lambda: png((b"tEXt", b"Comment\0" + b"x" * 2 * MB), end=True),
    "PNG, many texts": lambda: png(*[(b"tEXt", b"Comment\0" + NOISE)] * 40),
    "PNG, packed text": lambda: png((b"zTXt", b"Comment\0\0" + zlib.compress(b"x" * 100 * MB))),
    "PNG, XMP": lambda: png((b"iTXt", XMP + b"\1\0\0\0" + zlib.compress(b"<x/>" * 2 * MB))),
    "PNG, profile": lambda: png((b"iCCP", b"ICC\0\0" + zlib.compress(NOISE))),
    "PNG, profile larger than memory wants": lambda: png((b"iCCP", b"ICC\0\0" + zlib.compress(bytes(100 * MB)))),
    "PNG, EXIF": lambda: png((b"eXIf", EXIF[6:] + NOISE)),
    "PNG, text packed in no known way": lambda: png((b"zTXt", b"Comment\0\7junk")),
    "PNG, profile packed in no known way": lambda: png((b"iCCP", b"ICC\0\5junk")),
    "PNG, damaged text": lambda: png((b"tEXt", b"a\0b")).replace(b"a\0b", b"a\0c"),
    "PNG, resolution cut off": lambda: png((b"pHYs", b"\0")),
    "PNG, unknown": lambda: png((b"prVt", NOISE)),
    "JPEG, profile": lambda: jpeg(*((0xE2, part) for part in in_parts(b"ICC_PROFILE\0", NOISE, numbered=True))),
    "JPEG, part of a profile": lambda: jpeg((0xE2, b"ICC_PROFILE\0\1\3" + NOISE[:999])),
    "JPEG, no profile": lambda: jpeg((0xE2, b"ICC_PROFILE\0")),
    "JPEG, EXIF": lambda: jpeg((0xE1, EXIF + bytes(65000))),
    "JPEG, many EXIFs": lambda: jpeg(*((0xE1, part) for part in in_parts(EXIF[:6], NOISE))),
    "JPEG, XMP": lambda: jpeg(
        *((0xE1, part) for part in in_parts(b"http://ns.adobe.com/xmp/extension/\0", NOISE))
    ),
    "JPEG, comments": lambda: jpeg(*((0xFE, part) for part in in_parts(b"", NOISE))),
    "JPEG, Adobe cut off": lambda: jpeg((0xEE, b"Adobe")),
    "TIFF, text and XMP": lambda: encoded("TIFF", tiffinfo=tags({270: "x" * 2 * MB, 700: NOISE})),
    "TIFF, profile": lambda: encoded("TIFF", compression="tiff_lzw", icc_profile=NOISE),
    "TIFF, Photoshop": lambda: encoded("TIFF", tiffinfo=tags({33723: NOISE, 34377: NOISE})),
    "WebP, all": lambda: encoded("WEBP", lossless=True, icc_profile=NOISE, exif=EXIF + NOISE, xmp=NOISE),
    "WebP, damaged EXIF": lambda: encoded("WEBP", lossless=True, exif=b"junk"),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_pixels_are_read_whatever_else_a_file_says(tmp_path, name):
    (tmp_path / "a").write_bytes(FILES[name]())
    wanted = np.array(Image.open(io.BytesIO(encoded("JPEG", quality=95)))) if name.startswith("JPEG") else PIXELS
    assert np.array_equal(read_image(tmp_path / "a"), wanted)
    assert np.array_equal(read_photo(tmp_path / "a").pixels, wanted)
    assert image_shape(tmp_path / "a") == (20, 30)


@pytest.mark.parametrize("form", ["png", "jpg", "webp"])
def test_a_large_profile_goes_along_to_what_is_restored(tmp_path, form):
    profile = NOISE[:16] + b"RGB " + NOISE[20 : 1 * MB]
    (tmp_path / "a").write_bytes(encoded("PNG", icc_profile=profile))
    (tmp_path / "b").write_bytes(encode_photo(read_photo(tmp_path / "a"), form))
    assert read_photo(tmp_path / "b").profile == profile


def test_what_shows_is_kept(tmp_path):
    turned = b"MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0"  # an orientation of 6
    damaged = (b"zTXt", b"a\0\7b")
    (tmp_path / "a").write_bytes(png(damaged, (b"eXIf", turned)))
    assert np.array_equal(read_image(tmp_path / "a"), np.rot90(PIXELS, -1))
    (tmp_path / "b").write_bytes(png(damaged, (b"tRNS", struct.pack(">3H", *PIXELS[0, 0]))))
    with pytest.raises(BadImage, match="transparent"):
        read_image(tmp_path / "b")
    (tmp_path / "c").write_bytes(jpeg((0xEE, b"Adobe"), (0xE1, b"Exif\0\0" + turned)))
    assert read_image(tmp_path / "c").shape == (30, 20, 3)


def test_pixels_that_are_damaged_too_are_said_to_be(tmp_path):
    (tmp_path / "a").write_bytes(png((b"zTXt", b"a\0\7b"))[:80])
    with pytest.raises(BadImage, match=str(tmp_path / "a")):
        read_image(tmp_path / "a")


@pytest.mark.parametrize("make", [png, jpeg])
def test_files_cut_off_anywhere_come_to_an_end(make):
    data = make()
    for length in range(0, len(data), 7):
        assert len(without_metadata(data[:length])) <= length

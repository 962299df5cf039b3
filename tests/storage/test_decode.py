"""Images of every form: what they become, and what is said of those that are refused."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import warnings
import zlib

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from samdeblur.storage.decode import BadImage, image_shape, read_image
from samdeblur.storage.format.layout import MAX_PIXELS, MAX_SIDE
from samdeblur.storage.photos import read_photo

SUFFIXES = [".png", ".jpg", ".bmp", ".tif", ".webp"]
LOSSLESS = [".png", ".bmp", ".tif"]


@pytest.fixture(scope="module")
def colours():
    return np.random.default_rng(0).integers(0, 256, (9, 8, 3), np.uint8)


def refusal(path):
    with pytest.raises(BadImage) as caught:
        read_image(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


@pytest.mark.parametrize("suffix", LOSSLESS)
def test_rgb_files_give_their_pixels_and_shape(tmp_path, save, colours, suffix):
    path = save(tmp_path / f"a{suffix}", colours)
    image = read_image(path)
    assert (image.dtype, image.flags.c_contiguous, image.flags.writeable) == (np.uint8, True, True)
    assert np.array_equal(image, colours)
    assert image_shape(path) == (9, 8)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_form_is_told_by_the_bytes_not_by_the_name(tmp_path, save, colours, suffix):
    path = save(tmp_path / f"a{suffix}", colours)
    image = read_image(path)
    other = path.rename(tmp_path / "a.bin")
    assert np.array_equal(read_image(other), image)


@pytest.mark.parametrize("suffix", LOSSLESS)
def test_grey_images_become_rgb(tmp_path, save, suffix):
    grey = np.arange(72, dtype=np.uint8).reshape(9, 8)
    image = read_image(save(tmp_path / f"grey{suffix}", grey))
    assert np.array_equal(image, np.stack([grey] * 3, axis=2))


def test_black_and_white_images_become_rgb(tmp_path):
    bits = np.random.default_rng(0).random((9, 8)) < 0.5
    Image.fromarray(bits).save(tmp_path / "a.png")
    assert np.array_equal(read_image(tmp_path / "a.png"), np.stack([np.uint8(255) * bits] * 3, axis=2))


@pytest.mark.parametrize("suffix", LOSSLESS)
def test_palettes_without_transparency_become_rgb(tmp_path, suffix):
    numbers = np.arange(72, dtype=np.uint8).reshape(9, 8)
    palette = np.random.default_rng(0).integers(0, 256, (256, 3), np.uint8)
    image = Image.fromarray(numbers, "L").convert("P")
    image.putpalette(palette.tobytes())
    image.putdata(numbers.ravel().tolist())
    image.save(tmp_path / f"a{suffix}")
    assert np.array_equal(read_image(tmp_path / f"a{suffix}"), palette[numbers])


@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp"])
def test_alpha_is_dropped_where_it_is_opaque_and_refused_elsewhere(tmp_path, colours, suffix):
    path = tmp_path / f"a{suffix}"
    alpha = np.full((9, 8, 1), 255, np.uint8)
    Image.fromarray(np.dstack([colours, alpha])).save(path, lossless=True)
    assert np.array_equal(read_image(path), colours)
    alpha[4, 5] = 254
    Image.fromarray(np.dstack([colours, alpha])).save(path, lossless=True)
    assert refusal(path) == "transparent pixels; convert it to RGB without alpha"
    assert image_shape(path) == (9, 8)


def test_grey_with_alpha_is_treated_alike(tmp_path, colours):
    path = tmp_path / "a.png"
    Image.fromarray(np.dstack([colours[..., 0], np.full((9, 8), 255, np.uint8)]), "LA").save(path)
    assert np.array_equal(read_image(path), np.stack([colours[..., 0]] * 3, axis=2))
    Image.fromarray(colours[..., :2].copy(), "LA").save(path)
    assert "transparent pixels" in refusal(path)


@pytest.mark.parametrize("mode", ["RGB", "L", "P"])
def test_a_transparent_colour_matters_where_it_is_used(tmp_path, mode):
    image = Image.new(mode, (8, 9), 1)
    if mode == "P":
        image.putpalette([10, 20, 30, 40, 50, 60])
    used, unused = ((1, 0, 0), (7, 7, 7)) if mode == "RGB" else (image.getpixel((0, 0)), 0)
    image.save(tmp_path / "used.png", transparency=used)
    image.save(tmp_path / "unused.png", transparency=unused)
    assert "transparent pixels" in refusal(tmp_path / "used.png")
    assert np.array_equal(read_image(tmp_path / "unused.png"), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_the_transparent_grey_of_a_png_is_one_of_its_own_bits(tmp_path, bits):
    row = (1 << bits) - 1 - np.arange(8) % (1 << bits)
    packed = np.packbits(np.unpackbits(row.astype(np.uint8)[:, None], axis=1)[:, 8 - bits :])
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 9, bits, 0, 0, 0, 0))
    pixels = _chunk(b"IDAT", zlib.compress((b"\0" + packed.tobytes()) * 9)) + _chunk(b"IEND")
    transparent = _chunk(b"tRNS", struct.pack(">H", (1 << bits) - 1))
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + transparent + pixels)
    (tmp_path / "b.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + pixels)
    assert "transparent pixels" in refusal(tmp_path / "a.png")
    assert np.array_equal(read_image(tmp_path / "b.png")[0, :, 0], row * 255 // ((1 << bits) - 1))


@pytest.mark.parametrize("read", [read_image, read_photo])
@pytest.mark.parametrize(
    ("pixels", "options", "said"),
    [
        (np.full((9, 8), -3, np.int8), {"photometric": "minisblack"}, "signed"),
        (
            np.full((9, 8, 4), 3, np.uint8),
            {"photometric": "rgb", "extrasamples": [0]},
            "extra channels of unknown meaning",
        ),
        (np.full((9, 8, 5), 3, np.uint8), {"photometric": "rgb", "extrasamples": [0, 0]}, "extra channels"),
    ],
    ids=["signed", "four channels", "five channels"],
)
def test_tiff_channels_that_would_be_misread_or_lost_are_refused(tmp_path, read, pixels, options, said):
    tifffile.imwrite(tmp_path / "a.tif", pixels, **options)
    with pytest.raises(BadImage, match=said):
        read(tmp_path / "a.tif")


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bits_are_refused_and_not_cut_to_eight(tmp_path, suffix, channels):
    deep = np.random.default_rng(0).integers(0, 65536, (9, 8, channels)).astype(np.uint16)
    assert cv2.imwrite(str(tmp_path / f"a{suffix}"), deep)
    assert refusal(tmp_path / f"a{suffix}") == "16 bits per channel; convert it to 8-bit RGB"
    assert image_shape(tmp_path / f"a{suffix}") == (9, 8)


@pytest.mark.parametrize("channels", [1, 3])
def test_floats_are_refused(tmp_path, channels):
    path = tmp_path / "a.tif"
    assert cv2.imwrite(str(path), np.random.default_rng(0).random((9, 8, channels)).astype(np.float32))
    assert refusal(path) == "floating-point pixels; convert it to 8-bit RGB"


@pytest.mark.parametrize(
    ("mode", "suffix", "said"),
    [
        ("CMYK", ".jpg", "pixel format CMYK; convert it to 8-bit RGB"),
        ("CMYK", ".tif", "pixel format CMYK; convert it to 8-bit RGB"),
        ("LAB", ".tif", "pixel format LAB; convert it to 8-bit RGB"),
        ("I", ".tif", "32 bits per channel; convert it to 8-bit RGB"),
    ],
)
def test_other_pixel_formats_are_refused(tmp_path, mode, suffix, said):
    Image.new(mode, (8, 9)).save(tmp_path / f"a{suffix}")
    assert refusal(tmp_path / f"a{suffix}") == said
    assert image_shape(tmp_path / f"a{suffix}") == (9, 8)


def _turned(pixels, orientation):
    """By the definition of the tag: which side of the image its first row and first column are."""
    down, right = {
        1: ("top", "left"), 2: ("top", "right"), 3: ("bottom", "right"), 4: ("bottom", "left"),
        5: ("left", "top"), 6: ("right", "top"), 7: ("right", "bottom"), 8: ("left", "bottom"),
    }[orientation]  # fmt: skip
    if down in ("left", "right"):
        pixels, down, right = pixels.swapaxes(0, 1), right, down
    rows = slice(None, None, -1 if down == "bottom" else 1)
    columns = slice(None, None, -1 if right == "right" else 1)
    return pixels[rows, columns]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".webp", "deflate.tif"])
def test_images_are_turned_as_exif_says(tmp_path, colours, suffix, orientation):
    path, plain = tmp_path / f"a{suffix}", tmp_path / f"plain{suffix}"
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} | ({"compression": "tiff_deflate"} if "deflate" in suffix else {})
    Image.fromarray(colours).save(plain, **options)
    Image.fromarray(colours).save(path, exif=exif, **options)
    turned = _turned(read_image(plain), orientation)
    assert np.array_equal(read_image(path), turned)
    assert image_shape(path) == turned.shape[:2]


@pytest.mark.parametrize(
    "exif",
    [
        b"", b"II", b"MM\0*", b"Exif\0\0", b"II*\0\xff\xff\xff\xff", b"II*\0\x08\0\0\0\xff\xff",
        b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x09\0\0\0\0\0\0",
    ],
    ids=["empty", "order", "magic", "name", "no entries", "cut off", "orientation 9"],
)  # fmt: skip
def test_damaged_exif_turns_nothing(tmp_path, colours, exif):
    Image.fromarray(colours).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "a.png"), colours)
    assert image_shape(tmp_path / "a.png") == (9, 8)


@pytest.mark.parametrize("order", ["<", ">"])
def test_an_orientation_written_as_a_long_turns_too(tmp_path, colours, order):
    entry = struct.pack(f"{order}HHII", 0x0112, 4, 1, 6)
    mark = b"II" if order == "<" else b"MM"
    exif = mark + struct.pack(f"{order}HIH", 42, 8, 1) + entry + struct.pack(f"{order}I", 0)
    Image.fromarray(colours).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "a.png"), _turned(colours, 6))


def _chunk(name, data=b""):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _png(width, height):
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(bytes(99))) + _chunk(b"IEND")


@pytest.mark.parametrize(
    ("width", "height"),
    [(MAX_SIDE + 1, 1), (1, MAX_SIDE + 1), (MAX_SIDE, MAX_PIXELS // MAX_SIDE + 1), (2**31 - 1, 2**31 - 1)],
)
def test_absurd_sizes_are_refused_by_the_header(tmp_path, monkeypatch, width, height):
    path = tmp_path / "a.png"
    path.write_bytes(_png(width, height))
    monkeypatch.setattr(Image.Image, "load", None)  # Pillow decodes in load
    for use in (read_image, image_shape):
        with pytest.raises(BadImage, match=rf"a\.png: {width}x{height} pixels; at most 32768 on a side and 268435456 "):
            use(path)


def test_the_largest_size_is_taken_without_a_warning(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(_png(MAX_SIDE, MAX_PIXELS // MAX_SIDE))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert image_shape(path) == (MAX_PIXELS // MAX_SIDE, MAX_SIDE)
        Image.new("1", (10000, 9001)).save(tmp_path / "a.tif")  # Pillow warns of it when it is decoded
        with open(tmp_path / "a.tif", "r+b") as file:
            file.truncate(1000)  # soon
        assert "truncated" in refusal(tmp_path / "a.tif")


@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp", ".jpg"])
def test_files_of_several_images_are_refused_and_those_of_one_are_not(tmp_path, colours, suffix):
    path = tmp_path / f"a{suffix}"
    image, form = Image.fromarray(colours), {"format": "MPO"} if suffix == ".jpg" else {}
    image.save(path, save_all=True, append_images=[Image.fromarray(255 - colours)], **form)
    assert refusal(path) == "2 images in one file, animated or of several pages; keep one of them"
    assert image_shape(path) == (9, 8)
    image.save(path, **form, lossless=True)
    assert np.abs(read_image(path).astype(int) - colours).mean() < (60 if suffix == ".jpg" else 0.1)


OTHER_FORM = "not an image in PNG, JPEG, BMP, TIFF, WebP, GIF or PPM; convert it to PNG"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not an image: the file is empty"),
        (b"hello", OTHER_FORM),
        (b"<html>404</html>" * 99, OTHER_FORM),
        (b"\0\0\0\x1cftypavif" + bytes(99), OTHER_FORM),
        (b"%!PS-Adobe-3.0 EPSF-3.0", OTHER_FORM),
        (b"RIFF" + bytes(4) + b"WAVE" + bytes(99), OTHER_FORM),
    ],
    ids=["empty", "text", "web page", "AVIF", "EPS", "sound"],
)
def test_what_is_no_image_of_a_known_form_is_refused(tmp_path, content, said):
    (tmp_path / "a.png").write_bytes(content)
    assert refusal(tmp_path / "a.png") == said


def test_what_the_disk_says_is_kept_as_the_cause(tmp_path):
    for use in (read_image, image_shape):
        with pytest.raises(BadImage, match=r"a\.png: No such file or directory$") as caught:
            use(tmp_path / "a.png")
        assert isinstance(caught.value.__cause__, FileNotFoundError)


def _image_or_reason(path):
    try:
        return read_image(path)
    except BadImage as error:
        return str(error)


_TIFF_WARNS = [pytest.mark.filterwarnings(f"ignore:{text}:UserWarning") for text in ("Corrupt EXIF", "Truncated File")]


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", pytest.param(".tif", marks=_TIFF_WARNS), ".webp"])
def test_files_cut_off_anywhere_are_bad_images_that_name_the_file(tmp_path, save, colours, suffix):
    path = save(tmp_path / f"whole{suffix}", colours)
    content, whole = path.read_bytes(), read_image(path)
    cut, bad = tmp_path / f"cut{suffix}", 0
    for length in range(0, len(content), 1 + len(content) // 250):
        cut.write_bytes(content[:length])
        found = _image_or_reason(cut)
        if isinstance(found, str):
            bad += 1
            assert found.startswith(f"{cut}: "), length
            assert "\n" not in found, length
        else:
            assert np.array_equal(found, whole), length  # only bytes after the pixels are missing
        with contextlib.suppress(BadImage):
            assert image_shape(cut) == (9, 8), length
    assert bad > 50


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, on damaged TIFF
def test_flipped_bytes_give_an_image_of_the_promised_shape_or_a_bad_image(tmp_path, save, colours, suffix):
    content = save(tmp_path / f"whole{suffix}", colours).read_bytes()
    rng, path = np.random.default_rng(0), tmp_path / f"flipped{suffix}"
    for _ in range(300):
        flipped = bytearray(content)
        for position in rng.integers(0, min(len(content), 120), 3):
            flipped[position] = rng.integers(256)
        path.write_bytes(flipped)
        with contextlib.suppress(BadImage):
            assert read_image(path).shape == (*image_shape(path), 3)


@pytest.mark.parametrize("suffix", [".ppm", ".gif", ".jfif"])
def test_forms_seldom_met_are_read(tmp_path, suffix):
    grey = np.add.outer(np.arange(9), np.arange(8)).astype(np.uint8) * 9
    image = np.dstack([grey] * 3)
    Image.fromarray(grey).convert("RGB").save(tmp_path / f"a{suffix}", quality=100)
    assert np.abs(read_image(tmp_path / f"a{suffix}").astype(int) - image).max() <= (suffix == ".jfif")


@pytest.mark.parametrize("levels", [15, 1023, 65535])
@pytest.mark.parametrize("kind", [5, 6])
def test_ppm_of_other_depths_are_refused(tmp_path, kind, levels):
    values = np.full(4 * 4 * (1 if kind == 5 else 3), levels // 2, ">u2" if levels > 255 else "u1")
    (tmp_path / "a.ppm").write_bytes(b"P%d 4 4 %d\n" % (kind, levels) + values.tobytes())
    assert f"values up to {levels}, not up to 255" in refusal(tmp_path / "a.ppm") or levels == 65535
    refusal(tmp_path / "a.ppm")


@pytest.mark.parametrize("kind", ["pipe", "link to a pipe", "device", "socket"])
def test_what_may_never_end_is_no_image(tmp_path, kind):
    path = tmp_path / "a.png"
    if kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(os.path.relpath(path))
    else:
        os.mkfifo(tmp_path / "pipe")
        (tmp_path / "pipe").rename(path) if kind == "pipe" else path.symlink_to(tmp_path / "pipe")
    for use in (read_image, image_shape):
        with pytest.raises(BadImage, match=r"a\.png: (not a regular file|No such device)"):
            use(path)

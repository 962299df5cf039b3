"""PNG and JPEG files without what they say beside their pixels, for where that is damaged, or too large to be read."""

from __future__ import annotations

from collections.abc import Iterator

PNG, JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8"
OF_PIXELS = {b"tRNS", b"acTL", b"fcTL", b"fdAT", b"eXIf"}  # of the chunks that a reader may leave out, what is shown
START_OF_SCAN, COMMENT, APP0, APP1, APP14, APP15 = 0xDA, 0xFE, 0xE0, 0xE1, 0xEE, 0xEF
ADOBE = 14  # bytes of a whole APP14, which says what the channels are


def without_metadata(data: bytes) -> bytes:
    """The bytes of a file with its pixels, transparency and orientation; of other forms the bytes as they are."""
    if data.startswith(PNG):
        return PNG + b"".join(_chunks(data))
    if data.startswith(JPEG):
        return JPEG + b"".join(_segments(data))
    return data


def _chunks(data: bytes) -> Iterator[bytes]:
    start = len(PNG)
    while start < len(data):
        length, name = int.from_bytes(data[start : start + 4]), data[start + 4 : start + 8]
        end = start + 12 + length
        if name in OF_PIXELS or name[:1].isupper():  # as PNG marks what no reader may leave out
            yield data[start:end]
        start = end


def _segments(data: bytes) -> Iterator[bytes]:
    start = len(JPEG)
    while data[start : start + 1] == b"\xff" and (kind := int.from_bytes(data[start + 1 : start + 2])) != START_OF_SCAN:
        end = start + 2 + int.from_bytes(data[start + 2 : start + 4])
        content = data[start + 4 : end]
        orientation = kind == APP1 and content.startswith(b"Exif\0\0")
        channels = kind == APP14 and len(content) + 2 >= ADOBE
        if not (APP0 <= kind <= APP15 or kind == COMMENT) or orientation or channels:
            yield data[start:end]
        start = end
    yield data[start:]

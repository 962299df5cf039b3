"""The entries of a zip, read by byte ranges wherever the zip lies. Nothing is ever unpacked."""

from __future__ import annotations

import io
import math
import struct
import zipfile
import zlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import Any

from samdeblur.storage.access.location import Files, Location

TAIL = 65536 + 22 + 20 + 56  # the longest comment, and the three records that end a zip
MAX_DIRECTORY = 256 << 20
LOCAL_HEADER = 30
GAP = 512  # bytes between two parts that are fetched rather than asked around


class Zip:
    """The stored entries of a zip.

    Raises:
        ValueError: not a zip, a damaged one, or one whose entries are compressed, encrypted, repeated or named like
            paths out of it.
        FileNotFoundError: nothing there.
        Unreachable: no answer in time, or no parts of files.
    """

    def __init__(self, location: Location) -> None:
        self.location = location
        self._files, self._name = Files(location.parent), location.name
        try:
            with zipfile.ZipFile(_Ranges(self._files, self._name, location)) as archive:
                infos = archive.infolist()
        except (zipfile.BadZipFile, RuntimeError, OverflowError, struct.error) as error:
            raise ValueError(f"a damaged zip: {error}") from error
        self._infos = {info.filename: info for info in infos if not info.is_dir()}
        if len({info.filename for info in infos}) != len(infos):
            raise ValueError("two entries of the zip have one name")
        for info in infos:
            if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
                raise ValueError(f"entry {info.filename!r} of the zip is compressed or encrypted; store it as it is")
            if info.filename.startswith("/") or ".." in info.filename.split("/") or "\\" in info.filename:
                raise ValueError(f"entry {info.filename!r} of the zip has a path that leads out of it")
        self._starts: dict[str, int] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._infos

    def __iter__(self) -> Iterator[str]:
        return iter(self._infos)

    def size(self, name: str) -> int:
        return self._infos[name].file_size

    def contents(self, names: Sequence[str]) -> list[bytes]:
        """Whole entries, checked, all at once. Raises KeyError, ValueError."""
        found = self.read([(name, 0, self.size(name)) for name in names])
        for name, content in zip(names, found, strict=True):
            if zlib.crc32(content) != self._infos[name].CRC:
                raise ValueError(f"entry {name} of the zip does not match its checksum")
        return found

    def read(self, wanted: Sequence[tuple[str, int, int]]) -> list[bytes]:
        """Parts of entries, (name, first byte, last byte exclusive), all at once; neighbours in one request.

        The content of an entry begins after a local header of a length of its own, which is read along.

        Raises:
            ValueError: a part that is not inside its entry, or an entry that is not where the directory says.
        """
        for name, first, last in wanted:
            if not 0 <= first <= last <= self.size(name):
                raise ValueError(f"a part of entry {name} of the zip is not inside it")
        guesses = {name: self._guess(name) for name, _, _ in wanted if name not in self._starts}
        parts = [(self._starts.get(name, guesses.get(name, 0)), first, last) for name, first, last in wanted]
        spans = [(start + first, start + last) for start, first, last in parts]
        offsets = [self._infos[name].header_offset for name in guesses]
        found = self._fetch([*spans, *((offset, offset + LOCAL_HEADER) for offset in offsets)])
        for name, header in zip(guesses, found[len(spans) :], strict=True):
            if header[:4] != b"PK\x03\x04":
                raise ValueError(f"entry {name} is not where the directory of the zip says")
            names = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
            self._starts[name] = self._infos[name].header_offset + LOCAL_HEADER + names
        if any(self._starts[name] != guess for name, guess in guesses.items()):
            return self.read(wanted)
        if any(len(part) != last - first for part, (first, last) in zip(found, spans, strict=False)):
            raise ValueError("the zip is cut off")
        return found[: len(spans)]

    def _guess(self, name: str) -> int:
        """Where the content of an entry begins when its local header has no extra field, as in our own zips."""
        info = self._infos[name]
        return info.header_offset + LOCAL_HEADER + len(info.orig_filename.encode())

    def _fetch(self, spans: Sequence[tuple[int, int]]) -> list[bytes]:
        groups: list[list[int]] = []
        for first, last in sorted({span for span in spans if span[0] < span[1]}):
            if groups and first <= groups[-1][1] + GAP:
                groups[-1][1] = max(last, groups[-1][1])
            else:
                groups.append([first, last])
        contents = self._files.get_all([(self._name, slice(first, last)) for first, last in groups])
        found = []
        for first, last in spans:
            place = bisect_right(groups, [first, math.inf]) - 1
            content = (contents[place] or b"") if first < last else b""
            found.append(content[first - groups[place][0] : last - groups[place][0]])
        return found


class _Ranges(io.RawIOBase):
    """A file that seeks, for zipfile to find the directory with. The end is fetched once, the rest when it is read."""

    def __init__(self, files: Files, name: str, location: Location) -> None:
        super().__init__()
        if location.remote:
            tail = files.get(name, slice(-TAIL, None)) or files.get(name)  # all of it, where it is shorter than that
            if tail is None:
                raise FileNotFoundError(f"{location}: no such store")
            self._size, self._tail = _zip_size(tail), tail
        else:
            self._size, self._tail = location.path.stat().st_size, b""
        self._files, self._name, self._position = files, name, 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise zipfile.BadZipFile("its directory is not in the file")
        self._position = base + offset
        return self._position

    def read(self, size: int = -1) -> bytes:
        size = max(0, self._size - self._position if size < 0 else min(size, self._size - self._position))
        if size > MAX_DIRECTORY:
            raise zipfile.BadZipFile(f"its directory claims {size} bytes")
        first, tail = self._position, self._size - len(self._tail)
        self._position += size
        if first >= tail:
            return self._tail[first - tail : first - tail + size]
        return (self._files.get(self._name, slice(first, first + size)) or b"") if size else b""

    def readinto(self, buffer: Any) -> int:
        content = self.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)


def _zip_size(tail: bytes) -> int:
    """Size of a zip from its last bytes: what ends it says how much lies before. Raises BadZipFile."""
    end = tail.rfind(b"PK\x05\x06")
    if end < 0 or len(tail) - end < 22:
        raise zipfile.BadZipFile("the end of a zip is not there")
    directory, offset, comment = struct.unpack("<IIH", tail[end + 12 : end + 22])
    before = offset + directory
    if 0xFFFFFFFF in (directory, offset):
        locator = end - 20
        if locator < 56 or tail[locator : locator + 4] != b"PK\x06\x07":
            raise zipfile.BadZipFile("the end of a large zip is not there")
        before = struct.unpack("<Q", tail[locator + 8 : locator + 16])[0] + 56 + 20
    elif tail[max(0, end - 20) : end - 16] == b"PK\x06\x07":  # more than 65,535 entries in a small file
        before += 56 + 20
    return int(before) + 22 + int(comment)

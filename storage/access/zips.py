"""The entries of a zip, read by byte ranges wherever the zip lies. Nothing is ever unpacked."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

from samdeblur.storage.access.files import Files, Part, fetch_spans

TAIL = 65536 + 22 + 20 + 56  # the longest comment, and the three records that end a zip
MAX_DIRECTORY = 256 << 20
LOCAL_HEADER = 30
ENTRY = b"PK\x03\x04"
END = b"PK\x05\x06"
ROOT = "zarr.json"
ARRAY = "index/key/zarr.json"  # beside the root of a store, and nowhere else
LITTER = ("__MACOSX/", ".DS_Store")


def is_zip(files: Files) -> bool:
    """Whether a file begins as a zip, or is one of nothing. The file is that of `files` itself."""
    start = files.get_all([("", slice(0, 4))])[0]
    return start is not None and start in (ENTRY, END)


class Zip:
    """The stored entries of a zip: the files of a store, whose folder may lie inside a folder of the zip.

    Args:
        files: of the zip itself, which is the file of no name there.

    Raises:
        ValueError: not a zip, a damaged one, or one whose entries are compressed, encrypted, repeated or named like
            paths out of it.
        Unreachable: no answer in time, or no parts of files.
    """

    def __init__(self, files: Files) -> None:
        self._files = files
        self.gap = files.gap
        try:
            source = _Ranges(files)
            with zipfile.ZipFile(source) as archive:
                infos = archive.infolist()
        except (zipfile.BadZipFile, RuntimeError, OverflowError, struct.error) as error:
            raise ValueError(f"a damaged zip: {error}") from error
        self._tail, self._tail_start = source.tail, source.size - len(source.tail)
        entries = [info for info in infos if not info.is_dir() and not any(word in info.filename for word in LITTER)]
        if len({info.filename for info in infos}) != len(infos):
            raise ValueError("two entries of the zip have one name")
        for info in entries:
            if info.filename.startswith("/") or ".." in info.filename.split("/") or "\\" in info.filename:
                raise ValueError(f"entry {info.filename!r} of the zip has a path that leads out of it")
        root = _root([info.filename for info in entries])
        self._infos = {info.filename.removeprefix(root): info for info in entries if info.filename.startswith(root)}
        for info in self._infos.values():
            if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
                inside = f" and use the folder {root.rstrip('/')}" if root else ""
                raise ValueError(
                    f"entry {info.filename!r} of the zip is compressed or encrypted, and parts of it cannot be read; "
                    f"unpack it{inside}, or store it as it is (zip -0)"
                )
        self._starts: dict[str, int] = {}

    def get_all(self, wanted: Sequence[tuple[str, Part]]) -> list[bytes | None]:
        """As of `Files`. A whole entry is checked against its checksum, which raises ValueError."""
        there = [(name, part) for name, part in wanted if name in self._infos]
        spans = []
        for name, part in there:
            size = self._infos[name].file_size
            first, last, _ = (part or slice(None)).indices(size)
            if part is not None and part.stop is not None and part.stop > size:
                raise ValueError(f"a part of entry {name} of the zip is not inside it")
            spans.append((name, first, max(first, last)))
        found = iter(self._read(spans))
        answers: list[bytes | None] = []
        for name, part in wanted:
            content = next(found) if name in self._infos else None
            if content is not None and part is None and zlib.crc32(content) != self._infos[name].CRC:
                raise ValueError(f"entry {name} of the zip does not match its checksum")
            answers.append(content)
        return answers

    def stray(self) -> Iterator[str]:
        """Names of the damaged entries that are no chunks."""
        for name in self._infos:
            if "/c/" not in name:
                try:
                    self.get_all([(name, None)])
                except ValueError:
                    yield name

    def _read(self, wanted: Sequence[tuple[str, int, int]]) -> list[bytes]:
        """Parts of entries, (name, first byte, last byte exclusive), all at once; neighbours in one request.

        The content of an entry begins after a local header of a length of its own, which is read along.

        Raises:
            ValueError: an entry that is not where the directory says.
        """
        guesses = {name: self._guess(name) for name, _, _ in wanted if name not in self._starts}
        parts = [(self._starts.get(name, guesses.get(name, 0)), first, last) for name, first, last in wanted]
        spans = [(start + first, start + last) for start, first, last in parts]
        offsets = [self._infos[name].header_offset for name in guesses]
        found = self._fetch([*spans, *((offset, offset + LOCAL_HEADER) for offset in offsets)])
        for name, header in zip(guesses, found[len(spans) :], strict=True):
            if header[:4] != ENTRY:
                raise ValueError(f"entry {name} is not where the directory of the zip says")
            names = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
            self._starts[name] = self._infos[name].header_offset + LOCAL_HEADER + names
        if any(self._starts[name] != guess for name, guess in guesses.items()):
            return self._read(wanted)
        if any(len(part) != last - first for part, (first, last) in zip(found, spans, strict=False)):
            raise ValueError("the zip is cut off")
        return found[: len(spans)]

    def _guess(self, name: str) -> int:
        """Where the content of an entry begins when its local header has no extra field, as in our own zips."""
        info = self._infos[name]
        return info.header_offset + LOCAL_HEADER + len(info.orig_filename.encode())

    def _fetch(self, spans: Sequence[tuple[int, int]]) -> list[bytes]:
        """Parts of the zip; those at its end are here already."""
        start = self._tail_start
        asked = iter(fetch_spans(self._files, [("", first, last) for first, last in spans if first < start]))
        return [next(asked) if first < start else self._tail[first - start : last - start] for first, last in spans]


def _root(names: Sequence[str]) -> str:
    """The folder of the zip that a store lies in: "", or one with / at its end. Raises ValueError for several."""
    roots = [name.removesuffix(ARRAY) for name in names if name == ARRAY or name.endswith(f"/{ARRAY}")]
    roots = [root for root in roots if f"{root}{ROOT}" in names] if len(roots) > 1 else roots
    if "" in roots or not roots:
        return ""
    if len(roots) > 1:
        raise ValueError(f"it holds {len(roots)} stores, {', '.join(sorted(roots)[:3])}; unpack it, and name one")
    return roots[0]


class _Ranges(io.RawIOBase):
    """A file that seeks, for zipfile to find the directory with. The end is fetched once, the rest when it is read."""

    def __init__(self, files: Files) -> None:
        super().__init__()
        (tail,) = files.get_all([("", slice(-TAIL, None))])
        if not tail:
            raise zipfile.BadZipFile("it is empty")
        self.size, self.tail = _zip_size(tail), tail
        self._files, self._position = files, 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}[whence]
        if base + offset < 0:
            raise zipfile.BadZipFile("its directory is not in the file")
        self._position = base + offset
        return self._position

    def read(self, size: int = -1) -> bytes:
        size = max(0, self.size - self._position if size < 0 else min(size, self.size - self._position))
        if size > MAX_DIRECTORY:
            raise zipfile.BadZipFile(f"its directory claims {size} bytes")
        first, tail = self._position, self.size - len(self.tail)
        self._position += size
        if first >= tail:
            return self.tail[first - tail : first - tail + size]
        return fetch_spans(self._files, [("", first, first + size)])[0]

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

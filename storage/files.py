"""Files that are either whole or not there, also after a power cut."""

from __future__ import annotations

import codecs
import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path

PARTIAL = ".partial"


def fsync_path(path: Path) -> None:
    """Flush a file, or the entries of a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_durably(path: Path, data: bytes | memoryview) -> None:
    """Write to `<path>.partial`, flush, rename, flush the folder. A kill leaves the old file or the new one.

    Raises OSError, with the path in it.
    """
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + PARTIAL)
        try:
            with open(partial, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        except OSError:
            with suppress(OSError):  # on a full disk the half takes the room that is left
                partial.unlink()
            raise
        fsync_path(path.parent)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """An OSError of a write, as on a full disk, names this path where it has no name, or one that only stands in for
    it: of what is being written beside it, as `<path>.partial`.
    """
    try:
        yield
    except OSError as error:
        if error.errno is not None and (error.filename is None or str(error.filename).startswith(f"{path}.")):
            error.filename, error.filename2 = str(path), None
        raise


def open_regular(path: Path) -> BufferedReader:
    """Open a file to read. Raises OSError for a pipe, a device or a socket, of which a read may never return."""
    return open(path, "rb", opener=_regular)


def _regular(path: str, flags: int) -> int:
    descriptor = os.open(path, flags | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return descriptor


@contextmanager
def in_utf8(path: Path) -> Iterator[str]:
    """A path for libraries that take no other: of a name that is not UTF-8, the number under which it is open."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            yield f"/proc/self/fd/{descriptor}"
        finally:
            os.close(descriptor)
    else:
        yield str(path)


def sha256_file(path: Path) -> bytes:
    """SHA-256 of a file's bytes, 32 bytes. Raises OSError, as for what is no regular file."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").digest()


def decode_text(data: bytes, errors: str = "strict") -> str:
    """A text file that a person wrote: UTF-8, or UTF-16 or UTF-32 as their first bytes tell. Raises UnicodeDecodeError.

    The locale says nothing about a file that may come from another machine.
    """
    marks = {codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32", codecs.BOM_UTF16_LE: "utf-16",
             codecs.BOM_UTF16_BE: "utf-16"}  # fmt: skip
    encoding = next((name for mark, name in marks.items() if data.startswith(mark)), "utf-8-sig")
    if encoding == "utf-8-sig" and b"\0" in data[:4]:  # the mark was lost
        encoding = "utf-16-be" if data.startswith(b"\0") else "utf-16-le"
    return data.decode(encoding, errors)


def printable(text: str) -> str:
    """On one line, without characters that a terminal would act on."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def file_stamp(path: Path) -> str:
    """What changes whenever a file is replaced or written to: its size, times and number; "" for none that is there."""
    try:
        status = os.stat(path)
    except OSError:
        return ""
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns} {status.st_ino}"

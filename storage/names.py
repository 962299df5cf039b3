"""Names of images: how two are compared, and which file names are made of them.

One name may be written in two ways: with accents apart (as macOS writes file names) or not, with the suffix of a file
(as COCO does) or without. Joins take these for the same image.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from samdeblur.storage.pictures import SUFFIXES, UNREAD_SUFFIXES

FILE_NAME_BYTES = 200  # file systems take 255, of which suffixes and what others add are to find room
DIGEST_LETTERS = 12
UNSAFE = re.compile(r"[\x00-\x1f\x7f\\:*?\"<>|#%/]")  # on some file system, in a shell or in an address


def nfc(name: str) -> str:
    """The name with accents and letters joined: what is compared."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def stem(name: str) -> str:
    """The name in NFC without the suffix of a picture."""
    name = nfc(name)
    ending = name[name.rfind(".") :].lower()
    return name[: -len(ending)] if ending in SUFFIXES or ending in UNREAD_SUFFIXES else name


class Names:
    """Names that are found however they are written: a name as it is goes before one that is the same image."""

    def __init__(self, names: Iterable[str]) -> None:
        self._exact = dict.fromkeys(names)
        self._stems: dict[str, str | None] = {}
        for name in self._exact:
            self._stems[stem(name)] = name if stem(name) not in self._stems else None  # None: it does not tell

    def find(self, name: str) -> str | None:
        """The name among these that is of the same image; None when there is none, or several."""
        return name if name in self._exact else self._stems.get(stem(name))


def select(names: Sequence[str], pattern: str) -> list[str]:
    """The names that a pattern stands for, in their order: the one that is so called, else those that match the glob.

    `*` also stands for `/`; upper and lower case are apart.
    """
    one = Names(names).find(pattern)
    if one is not None:
        return [one]
    wanted, bare = nfc(pattern), stem(pattern)

    def matches(name: str) -> bool:
        whole, short = nfc(name), stem(name)
        return fnmatchcase(whole, wanted) or fnmatchcase(short, wanted) or (whole == short and fnmatchcase(whole, bare))

    return [name for name in names if matches(name)]


def file_name(key: str, suffix: str = "") -> str:
    """A file name for an image that a person can read, not longer than FILE_NAME_BYTES, different for each key.

    Folders of the key are joined by "__". What had to be changed, or cut, is told apart by a digest.
    """
    plain = UNSAFE.sub("_", nfc(key).replace("/", "__")).lstrip(".") or "_"
    room = FILE_NAME_BYTES - len(suffix.encode())
    if plain.replace("__", "/") != key or len(plain.encode()) > room:
        digest = hashlib.sha256(key.encode()).hexdigest()[:DIGEST_LETTERS]
        plain = f"{plain.encode()[: room - DIGEST_LETTERS - 1].decode(errors='ignore')}-{digest}"
    return plain + suffix


def file_path(key: str, suffix: str = "") -> str:
    """A relative path for an image: the folders of its key, each name bounded as in `file_name`."""
    *folders, last = [part for part in nfc(key).split("/") if part not in ("", ".", "..")] or ["_"]
    return "/".join([*map(file_name, folders), file_name(last, suffix)])

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

from samdeblur.storage.suffixes import SUFFIXES, UNREAD_SUFFIXES

FILE_NAME_BYTES = 200  # file systems take 255, of which suffixes and what others add are to find room
DIGEST_LETTERS = 12
UNSAFE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff\\:*?\"<>|#%/]")  # on some file system, in a shell or in an address


def nfc(name: str) -> str:
    """The name with accents and letters joined: what is compared."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def in_unicode(name: str) -> str:
    """The name as text: the bytes of one that is not UTF-8, from an old archive most often, as in Latin-1."""
    try:
        name.encode()
        return name
    except UnicodeEncodeError:
        return _bytes_on_disk(name).decode("latin-1")


def stem(name: str) -> str:
    """The name in NFC without the suffix of an image."""
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


def shared_names(sets: Iterable[Iterable[str]]) -> list[dict[str, str]]:
    """For sets of names, each name: what the first set that has its image calls it.

    Two names of one set stay two images.
    """
    known: dict[str, None] = {}
    shared = []
    for names in map(tuple, sets):
        before, own = Names(known), Names(names)
        called = {name: before.find(name) or name for name in names}
        shared.append({name: there if own.find(there) == name else name for name, there in called.items()})
        known |= dict.fromkeys(shared[-1].values())
    return shared


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
    """A file name for an image or a set that a person can read, of FILE_NAME_BYTES at most, different for each.

    Folders of the key are joined by "__". What had to be changed, or cut, is told apart by a digest.
    """
    key = nfc(key)
    plain = UNSAFE.sub("_", key.replace("/", "__")).lstrip(".") or "_"
    room = FILE_NAME_BYTES - len(suffix.encode())
    if plain.replace("__", "/") != key:
        plain = _told_apart(plain, key, room)
    return bounded(plain, room) + suffix


def file_path(key: str, suffix: str = "") -> str:
    """A relative path for an image: the folders of its key, each part a name as `file_name` makes it."""
    *folders, last = key.split("/")
    return "/".join([*map(file_name, folders), file_name(last, suffix)])


def bounded(name: str, room: int = FILE_NAME_BYTES) -> str:
    """A name as it is, or where it has more bytes than `room` its beginning and a digest."""
    return name if len(_bytes(name)) <= room else _told_apart(name, name, room)


def _told_apart(plain: str, name: str, room: int) -> str:
    digest = hashlib.sha256(_bytes(name)).hexdigest()[:DIGEST_LETTERS]
    return f"{_bytes(plain)[: room - DIGEST_LETTERS - 1].decode(errors='ignore')}-{digest}"


def _bytes_on_disk(name: str) -> bytes:
    return name.encode(errors="surrogateescape")


def _bytes(name: str) -> bytes:
    """In UTF-8, with the bytes that a file's name has and UTF-8 does not."""
    return name.encode(errors="surrogatepass")

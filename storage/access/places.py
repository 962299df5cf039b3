"""What lies at a path that is no mask store, said to the person who named it, and whether a path can be written."""

from __future__ import annotations

import errno
import os
import re
import tempfile
from pathlib import Path
from urllib.parse import unquote

from samdeblur.storage.folders import WORDS, kind_of
from samdeblur.storage.format.layout import StoreError
from samdeblur.storage.listing import image_files, is_empty

NAMED = 3  # entries of a folder in a message
FILE_URL = re.compile(r"file:(?://(?:localhost(?=/))?|(?=/[^/]))", re.IGNORECASE)
KINDS = {
    ".json": "a JSON file; samdeblur-prep import makes a store of masks in one",
    ".safetensors": "weights",
    ".pth": "weights",
    ".yaml": "a YAML file; samdeblur-prep run takes it by --job",
}


def local_path(text: str) -> Path:
    """A path as a person writes it: ~ and file: are taken for what they mean. Raises ValueError for an address."""
    if url := FILE_URL.match(text):
        written = os.path.expanduser(text[url.end() :])
        return Path(written if os.path.exists(written) else unquote(written))
    if "://" in text:
        raise ValueError("an address")
    return Path(os.path.expanduser(text))


def refusal(path: Path, shown: str, error: Exception) -> Exception:
    """What to say of something that was to be opened as a store and could not be: what it is, and what to do."""
    try:
        os.stat(path)
        if not os.access(path, os.R_OK | (os.X_OK if path.is_dir() else 0)):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except FileNotFoundError:
        return FileNotFoundError(f"{shown}: no such store")
    except OSError as denied:
        return OSError(denied.errno, f"{denied.strerror}; it exists, but you may not read it", shown)
    if "unable to lock file" in str(error):
        return OSError(errno.EAGAIN, "locked by another program that writes to it; close it there first", shown)
    of_a_store = (path / "zarr.json").exists() or (path / "index/state").exists()
    if of_a_store or not (kind := what_lies_at(path)):
        return StoreError(f"{shown}: not a mask store ({error})")
    return StoreError(f"{shown}: not a mask store but {kind}")


def what_lies_at(path: Path) -> str:
    """Of something that is no store, in words; empty where they would say nothing. Raises OSError."""
    if path.is_file():
        return KINDS.get(path.suffix.lower(), "")
    if not path.is_dir():
        return "a pipe, a device or a socket"
    if kind := kind_of(path):
        return WORDS[kind]
    if is_empty(path):
        return "an empty folder; samdeblur-prep run makes a store there"
    if (path / "train").is_dir() or (path / "test").is_dir() or _has_images(path):
        return "a folder of images; samdeblur-prep run makes a store of it"
    names = sorted(os.listdir(path))
    more = ", ..." if len(names) > NAMED else ""
    return f"a folder that holds {', '.join(names[:NAMED])}{more}; name the store itself"


def _has_images(folder: Path) -> bool:
    try:
        return bool(image_files(folder))
    except (ValueError, OSError):
        return False


def require_writable(path: Path, folder: bool | None) -> None:
    """Raise OSError, of this path, when it cannot be written there; nothing is left of the attempt.

    Args:
        folder: whether a folder is to be made there, with things beside it, or a file; None for either.
    """
    real = Path(os.path.realpath(path))
    try:
        if any(each.is_symlink() for each in (real, *real.parents)):
            raise OSError(errno.ELOOP, "its links lead in a circle")
        if store := next((above for above in real.parents if (above / "index/state").is_dir()), None):
            raise OSError(errno.EINVAL, f"it would be inside the mask store {store}")
        if folder is not None and real.exists() and real.is_dir() != folder:
            raise OSError(errno.ENOTDIR, "it is a file" if folder else "it is a folder")
        for place in {real, real.parent} if real.is_dir() else {real.parent}:
            while not place.exists():
                place = place.parent
            if not place.is_dir():
                raise OSError(errno.ENOTDIR, f"{place} is a file")
            with tempfile.TemporaryFile(dir=place):
                pass
    except OSError as error:
        raise OSError(error.errno, f"cannot be written: {error.strerror}; choose another place", str(path)) from error

"""The layout of a dataset that this package does not know: a function of its user, named as `package.module:function`.

The function gets the folder (an absolute path) and the name of the split, and gives the pairs of that split: a mapping
of a key to the blurred and the sharp file, as paths absolute or from the folder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from samdeblur.pipeline.sources.base import SourceError
from samdeblur.pipeline.sources.layouts import ANY, Layout
from samdeblur.pipeline.sources.listing import Pairs
from samdeblur.storage.names import nfc
from samdeblur.storage.own_code import CodeError, load_code
from samdeblur.storage.reasons import error_in_a_line


def own_layout(name: str) -> Layout:
    """The layout that a function makes, by its name. Raises SourceError where there is none."""
    try:
        function = load_code(name)
    except CodeError as error:
        raise SourceError(f"layout {name}: {error}") from error
    if not callable(function):
        raise SourceError(f"layout {name}: a {type(function).__name__}, no function of a folder and a split")
    return Layout(f"pairs that {name} gives", lambda root: {ANY: root}, partial(_list, name, function))


def _list(name: str, function: Callable[[Path, str], Any], folder: Path, split: str) -> Pairs:
    try:
        found = function(folder, split)
    except Exception as error:
        raise SourceError(f"layout {name}: {error_in_a_line(error)}") from error
    if not isinstance(found, Mapping):
        raise SourceError(f"layout {name}: gave a {type(found).__name__}, not a mapping of keys to pairs of files")
    pairs = {_key(name, key): _files(name, folder, key, files) for key, files in found.items()}
    return dict(sorted(pairs.items()))


def _key(name: str, key: Any) -> str:
    if not isinstance(key, str) or not key:
        raise SourceError(f"layout {name}: the key {key!r} is not a name")
    return nfc(key)


def _files(name: str, folder: Path, key: str, files: Any) -> tuple[Path | None, Path | None]:
    """Those that exist."""
    try:
        blurred, sharp = (folder / file for file in files)
    except (TypeError, ValueError):
        raise SourceError(f"layout {name}: {key}: {files!r} is not two paths, the blurred and the sharp file") from None
    return blurred if blurred.is_file() else None, sharp if sharp.is_file() else None

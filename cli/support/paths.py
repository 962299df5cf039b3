"""Paths as they enter a command: ~ and file:// mean what they say, and an address is no path.

What cannot be written ends the command before any work.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

import click

from samdeblur.storage.access.places import local_path, require_writable

SHARES = (".zip", ".h5", ".hdf5")


class LocalPath(click.ParamType):
    """A path on a disk.

    Args:
        written: what the command writes there; nothing for a path that it reads.
    """

    name = "path"

    def __init__(self, written: Literal["", "file", "folder", "store", "either"] = "") -> None:
        self.written = written

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        if isinstance(value, Path):
            return value
        text = os.fspath(value)
        if not text:
            raise click.UsageError(f"{called(param)}: an empty path")
        try:
            path = local_path(text)
        except ValueError:
            what = "write to a disk, and upload it from there" if self.written else "download it, and name the path"
            raise click.UsageError(f"{called(param)} {text}: an address; {what}") from None
        if self.written:
            try:
                self._require(path, text)
            except OSError as error:
                raise click.UsageError(f"{text}: {error.strerror}") from None
        return path

    def _require(self, path: Path, text: str) -> None:
        """Raise UsageError, or the OSError of looking, for what this cannot be written to."""
        if self.written == "store" and path.is_file():
            raise click.UsageError(f"{text}: a file, which can only be read; give a folder to write the store to")
        if self.written == "store" and path.suffix.lower() in SHARES and not path.is_dir():
            raise click.UsageError(f"{text}: a store is a folder; write one, and export it as a file")
        require_writable(path, None if self.written == "either" else self.written != "file")


def called(param: click.Parameter | None) -> str:
    """What a person calls a parameter."""
    return param.opts[0] if isinstance(param, click.Option) else str(param.human_readable_name if param else "path")


class Place(click.ParamType):
    """A path or an address, as text."""

    name = "place"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not str(value):
            raise click.UsageError(f"{called(param)}: an empty path")
        try:
            return str(local_path(str(value)))
        except ValueError:
            return str(value)


READ, FILE, FOLDER, EITHER = LocalPath(), LocalPath("file"), LocalPath("folder"), LocalPath("either")
STORE, PLACE = LocalPath("store"), Place()

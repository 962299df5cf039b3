"""Pairs of image files as a source. How folders lie on disk is in `layouts`, how files become pixels in `decode`."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from samdeblur.pipeline.sources.base import BadImage, ImagePair, SourceLost
from samdeblur.storage.decode import image_shape, read_image
from samdeblur.storage.files import sha256_file
from samdeblur.storage.format.layout import pixel_digest

# What a file system says that is gone, or that this process has too much open; it is no property of one file.
LOST = frozenset({
    errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.ENODEV, errno.EMFILE, errno.ENFILE
})  # fmt: skip
MISSING = frozenset({errno.ENOENT, errno.ENOTDIR})

Found = TypeVar("Found")


@dataclass(frozen=True)
class FolderSource:
    """Pairs of image files.

    Attributes:
        files: key -> paths of the blurred and the sharp file, absolute, for workers in other working directories.
        root: the folder that was named, absolute; when it is gone, or empty, so is the disk that it lies on.
        notes: lines for a person about what is missing from the split.
    """

    dataset: str
    split: str
    files: Mapping[str, tuple[Path, Path]]
    digest: str
    root: Path
    notes: tuple[str, ...] = ()

    @property
    def keys(self) -> Sequence[str]:
        return list(self.files)

    def shape(self, key: str) -> tuple[int, int]:
        """That of the sharp image where the blurred one cannot be opened: a mended file will most likely have it."""
        blurred, sharp = self.files[key]
        try:
            return self._read_file(image_shape, blurred)
        except BadImage:
            with suppress(BadImage):
                return self._read_file(image_shape, sharp)
            raise

    def read(self, key: str) -> ImagePair:
        blurred_path, sharp_path = self.files[key]
        blurred, sharp = self._read_file(read_image, blurred_path), self._read_file(read_image, sharp_path)
        if blurred.shape != sharp.shape:
            sizes = " and ".join(f"{image.shape[1]}x{image.shape[0]}" for image in (blurred, sharp))
            raise BadImage(f"{blurred_path}: blurred and sharp differ in size, {sizes}")
        digest = pixel_digest(blurred) if self.digest == "pixels" else self._read_file(_file_digest, blurred_path)
        return ImagePair(blurred, sharp, digest)

    def subset(self, keys: Iterable[str]) -> FolderSource:
        return replace(self, files={key: self.files[key] for key in keys}, notes=())

    def _read_file(self, read: Callable[[Path], Found], path: Path) -> Found:
        """Read a file. Raises BadImage, or SourceLost when the disk is to blame and not the file."""
        try:
            return read(path)
        except BadImage as bad:
            error = bad.__cause__
            if not isinstance(error, OSError) or error.errno is None or not self._is_lost(error.errno, path):
                raise
            reason = f"{error.strerror}; {self.root} cannot be read now, make it readable and run again"
            raise SourceLost(error.errno, reason, str(path)) from error

    def _is_lost(self, code: int, path: Path) -> bool:
        if code not in MISSING:
            return code in LOST
        return _is_empty(self.root) or _is_empty(path.parent)  # which may be a link to another disk


def _is_empty(folder: Path) -> bool:
    """Whether a folder in which files were listed is gone, or holds nothing: as where a disk was mounted."""
    try:
        with os.scandir(folder) as entries:
            return next(entries, None) is None
    except OSError:
        return True


def _file_digest(path: Path) -> bytes:
    try:
        return sha256_file(path)
    except OSError as error:
        raise BadImage(f"{path}: {error.strerror}") from error

"""Where pairs of blurred and sharp images come from: folders in known layouts, and the sources of this package.

How folders lie on disk is in `layouts`, how files become pixels in `decode`.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from samdeblur.pipeline.layouts import LAYOUTS, detect_layout, list_split
from samdeblur.pipeline.listing import SourceError, complete_pairs
from samdeblur.storage import AtomMap
from samdeblur.storage.decode import BadImage, image_shape, read_image
from samdeblur.storage.files import sha256_file
from samdeblur.storage.layout import pixel_digest
from samdeblur.storage.pictures import LOSSY_SUFFIXES, SUFFIXES

# What a file system says that is gone, or that this process has too much open; it is no property of one file.
LOST = frozenset({
    errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.ENODEV, errno.EMFILE, errno.ENFILE
})  # fmt: skip
MISSING = frozenset({errno.ENOENT, errno.ENOTDIR})

Found = TypeVar("Found")


class SourceLost(OSError):
    """The place the images lie in cannot be read, now; this says nothing about an image.

    Like any OSError it carries `errno`, `strerror` and `filename`.
    """


@dataclass(frozen=True)
class ImagePair:
    """A blurred image and its sharp counterpart, (H, W, 3) uint8 RGB each, and the digest of the blurred source.

    `masks` are the true ones, of sources that know them.
    """

    blurred: NDArray[np.uint8]
    sharp: NDArray[np.uint8]
    digest: bytes
    masks: AtomMap | None = None


class Source(Protocol):
    """A dataset split that can be listed and read. Sent to workers, so small: `subset` narrows it to one block."""

    @property
    def dataset(self) -> str: ...
    @property
    def split(self) -> str: ...
    @property
    def keys(self) -> Sequence[str]:
        """Names of the images, sorted, unique."""
        ...

    @property
    def digest(self) -> str:
        """What `ImagePair.digest` is the SHA-256 of: "pixels", or "file" for sources decoders disagree on."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """Lines for a person about what is missing from the split."""
        ...

    def shape(self, key: str) -> tuple[int, int]:
        """Height and width of the blurred image, without decoding it. Raises BadImage or SourceLost."""
        ...

    def read(self, key: str) -> ImagePair:
        """Decode a pair. Raises BadImage or SourceLost."""
        ...

    def subset(self, keys: Iterable[str]) -> Source: ...


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
            return self._use(image_shape, blurred)
        except BadImage:
            with suppress(BadImage):
                return self._use(image_shape, sharp)
            raise

    def read(self, key: str) -> ImagePair:
        blurred_path, sharp_path = self.files[key]
        blurred, sharp = self._use(read_image, blurred_path), self._use(read_image, sharp_path)
        if blurred.shape != sharp.shape:
            sizes = " and ".join(f"{image.shape[1]}x{image.shape[0]}" for image in (blurred, sharp))
            raise BadImage(f"{blurred_path}: blurred and sharp differ in size, {sizes}")
        digest = pixel_digest(blurred) if self.digest == "pixels" else self._use(_file_digest, blurred_path)
        return ImagePair(blurred, sharp, digest)

    def subset(self, keys: Iterable[str]) -> FolderSource:
        return replace(self, files={key: self.files[key] for key in keys}, notes=())

    def _use(self, read: Callable[[Path], Found], path: Path) -> Found:
        """Read a file. Raises BadImage, or SourceLost when the disk is to blame and not the file."""
        try:
            return read(path)
        except BadImage as bad:
            error = bad.__cause__
            if not isinstance(error, OSError) or error.errno is None or not self._is_lost(error.errno):
                raise
            reason = f"{error.strerror}; {self.root} cannot be read now, make it readable and run again"
            raise SourceLost(error.errno, reason, str(path)) from error

    def _is_lost(self, code: int) -> bool:
        if code not in MISSING:
            return code in LOST
        try:
            with os.scandir(self.root) as entries:
                return next(entries, None) is None  # where a disk was mounted
        except OSError:
            return True


def _file_digest(path: Path) -> bytes:
    try:
        return sha256_file(path)
    except OSError as error:
        raise BadImage(f"{path}: {error.strerror}") from error


def embedded(location: str) -> str:
    """Which source of this package a location names: "sample", "worlds", or "" where it is a folder.

    A family, such as worlds-long, gives way to a folder of that name.
    """
    name = location.split(":")[0]
    kind = name.split("-")[0]
    if kind not in ("sample", "worlds") or (name != kind and os.path.exists(location)):
        return ""
    return kind


def open_source(
    location: str, split: str, layout: str = "auto", dataset: str | None = None, skip_unpaired: bool = False
) -> Source:
    """The source at a folder, or one of this package for `sample[-FAMILY]` and `worlds[-FAMILY][:COUNT[:SIZE]]`.

    Args:
        location: a folder, or the name of a source of this package.
        split: names the split; the native layouts have a folder or a list of this name.
        layout: a key of LAYOUTS, "sample", "worlds", or "auto".
        dataset: name written into the store; by default that of the layout or the folder.
        skip_unpaired: leave out images without a counterpart instead of refusing the folder.

    Raises:
        FileNotFoundError: no such folder.
        SourceError: no images, unpaired names, unknown layout or split.
    """
    kind = embedded(location)
    if kind and layout in ("auto", kind):
        from samdeblur.pipeline.sample import SampleSource  # both import this module
        from samdeblur.pipeline.worlds import WorldSource

        return (SampleSource if kind == "sample" else WorldSource).of(location, split)
    root = Path(os.path.abspath(location))
    if not root.is_dir():
        raise FileNotFoundError(f"{location}: no such folder")
    if not os.listdir(root):
        raise SourceError(f"{location}: an empty folder; mount the disk of the dataset there, or name another folder")
    if layout == "auto":
        layout = detect_layout(root, split)
    elif layout not in LAYOUTS:
        raise SourceError(f"unknown layout {layout!r}, choose from {', '.join(['auto', 'sample', 'worlds', *LAYOUTS])}")
    pairs = list_split(root, split, layout)
    if not pairs:
        raise SourceError(f"{location}: no images ({', '.join(sorted(SUFFIXES))}) in the {layout} layout")
    files, left_out = complete_pairs(pairs, root, skip_unpaired)
    name = dataset or LAYOUTS[layout].dataset or root.resolve().name
    notes = [f"{name} {split}: {left_out}"] if left_out else []
    published = LAYOUTS[layout].published.get(split, len(files))
    if len(files) != published:
        notes.append(f"{name} {split}: {len(files):,} pairs found, the published split has {published:,}")
    lossy = any(blurred.suffix.lower() in LOSSY_SUFFIXES for blurred, _ in files.values())
    return FolderSource(name, split, files, "file" if lossy else "pixels", root, tuple(notes))
